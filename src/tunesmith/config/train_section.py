"""The recipe's `train` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tunesmith.config.data_section import on_or_off
from tunesmith.config.section import Section

CompileMode = Annotated[Literal["auto", "on", "off"], BeforeValidator(on_or_off)]
"""Whether decoder layers are compiled."""


class TrainSection(Section):
    """How to train; names and meaning are those of `transformers.TrainingArguments`.

    Args:
        num_train_epochs: passes over the training data; a fraction is allowed.
        max_steps: optimizer steps; overrides the epochs when given.
        warmup_steps: steps of linear warmup, or a share of all steps when below 1.
        warmup_ratio: the same as a share; give one of the two.
        gradient_accumulation_steps: one optimizer step has so many times `per_device_train_batch_size` examples. Their
            token losses are summed and divided
            by the step's target tokens, so that accumulation does not change the result.
        max_tokens_per_micro_batch: most tokens of one forward pass, padding counted. A step's examples are divided into
            micro-batches of like length within it and within `per_device_train_batch_size`; the result is the same
            up to rounding, and with dropout up to its noise. auto: 2,048 on a CPU and
            8,192 on CUDA.
        frozen_layers_cache_gb: most disk for what the layers below the lowest adapter give, computed once for all
            epochs (with `adapter.layers: last:N`); 0 computes it in every step.
        compile: `torch.compile` for the decoder layers. auto compiles where a forecast from the recipe, the data and
            the class of processor says that it saves more time within the run than it costs; a resumed run does as it
            began. on always tries. Without a C++ compiler, or where compiled layers give other numbers, training goes
            on in eager and the report says why.
        gradient_checkpointing: recompute activations in the backward pass, for less memory and more time.
        train_sampling_strategy: group_by_length puts like lengths together, so that less is padding.
        eval_steps: validate every so many steps; by default at the end of each epoch.
        save_steps: write a checkpoint every so many steps.
        save_total_limit: checkpoints to keep; the newest and the best always stay.
        load_best_model_at_end: the adapter is the one with the lowest validation loss, not the last.
        early_stopping_patience: stop after so many validations without a lower loss.
        early_stopping_threshold: how much lower counts.
        on_unhealthy: when the loss diverges, the run overfits and the like: report says so, adjust also lowers the
            learning rate, lengthens the warmup or stops early, stop ends the run with a checkpoint.
        report_to: further trackers beside metrics.jsonl.
    """

    num_train_epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    per_device_train_batch_size: int = Field(8, ge=1)
    per_device_eval_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    max_tokens_per_micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    frozen_layers_cache_gb: float = Field(20.0, ge=0)
    compile: CompileMode = "auto"
    gradient_checkpointing: bool = False
    learning_rate: float = Field(2e-4, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[float, Field(ge=0)] | None = None
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0)
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "group_by_length"
    logging_steps: int = Field(10, ge=1)
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    save_steps: int = Field(500, ge=1)
    save_total_limit: int = Field(3, ge=1)
    load_best_model_at_end: bool = True
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    early_stopping_threshold: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)
    on_unhealthy: Literal["report", "adjust", "stop"] = "report"
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker_or_none(cls, value: object) -> object:
        if value in (None, "none"):
            return []
        return [value] if isinstance(value, str) else value

    @field_validator("warmup_steps")
    @classmethod
    def _whole_or_share(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError("give a whole number of steps, or a share below 1")
        return value

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainSection:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("warmup_steps and warmup_ratio say the same thing; give one")
        return self

    @model_validator(mode="after")
    def _stopping_needs_patience(self) -> TrainSection:
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError("early_stopping_threshold does nothing without early_stopping_patience")
        return self

"""The recipe: one typed description of a run; `recipe_file` reads it from YAML.

Keys use the names of PEFT's `LoraConfig` and of `transformers.TrainingArguments` where those have one. No torch is
imported here.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A section of the recipe: unknown keys are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ModelSection(Section):
    """Which base model, and how its numbers are held.

    Args:
        name: a catalog name, a hub id, a folder, or a .gguf file.
        revision: branch, tag or commit of a hub id.
        precision: auto takes bf16 where the device computes in it, else fp16 on CUDA and fp32 on a CPU.
    """

    name: str = Field(min_length=1)
    revision: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class HubDataset(Section):
    """A dataset of the hub, read with the `datasets` package.

    Args:
        path: its id, as "openai/gsm8k".
        name: its configuration, as "main".
        split: its split; by default the one it is listed under: train, validation or test.
        revision: branch, tag or commit.
    """

    path: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")
    name: str | None = None
    split: str | None = None
    revision: str | None = None


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


Sources = Annotated[list[str | HubDataset], BeforeValidator(_as_list), Field(min_length=1)]
"""One file or hub dataset, or a list of them."""


class ColumnMapping(Section):
    """Which columns hold what, for rows of no usual shape.

    Give `messages` (a list of turns; `role` and `content` name the keys within a turn), or `prompt` and
    `completion` with an optional `system`, or `text`.
    """

    messages: str | None = None
    role: str = "role"
    content: str = "content"
    system: str | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> ColumnMapping:
        pair = (self.prompt is not None, self.completion is not None)
        if pair[0] != pair[1]:
            raise ValueError("prompt and completion go together")
        if (self.messages is not None) + pair[0] + (self.text is not None) != 1:
            raise ValueError("name exactly one of: messages; prompt and completion; text")
        return self


DataFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "text", "mapping"
]


def _mode(value: object) -> object:
    """YAML 1.1 reads on and off as truth values."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


RuleMode = Annotated[Literal["on", "off", "fix"], BeforeValidator(_mode)]
"""What a rule of the check does: report, nothing, or act as well."""


class DataRules(Section):
    """The rules of the check. Each is on (report), off, or fix (report and act).

    What `fix` does is said with each: it mends the text, in every split, or leaves the row out, of train only.
    Every change and every row left out stands in `data/dropped.jsonl`.

    Args:
        exact_duplicates: rows of train equal in all but case, width and white space; fix keeps one of them.
        near_duplicates: rows of train that share most of their words; fix keeps one of each cluster.
        conflicting_answers: the same prompt with different answers in train; fix leaves all of them out.
        leakage: rows of train that also stand in validation, test or a benchmark; fix leaves them out of train.
        mojibake: text decoded with the wrong encoding; fix decodes it anew.
        invisible_characters: control, zero-width and direction characters; fix removes them.
        markup: left-overs of HTML; fix removes tags and resolves entities.
        repeated_text: an answer that says the same over and over; fix leaves the row out.
        one_word_answers: answers of one word where most are long; fix leaves the row out.
        refusals: answers that refuse; fix leaves the row out.
        boilerplate: phrases of a chat assistant about itself; fix leaves the row out.
        language_mix: an answer in another language than its prompt, or a row in another than the rest; fix leaves it
            out.
        url_only: an answer of nothing but addresses; fix leaves the row out.
        broken_json: an answer that is no JSON where nearly all are; fix leaves the row out.
        special_tokens: the model's special tokens written in a text; fix removes them.
        email: mail addresses; fix puts [EMAIL] in their place.
        phone: telephone numbers; fix puts [PHONE] in their place.
        card_number: numbers of bank cards, by their checksum; fix puts [CARD] in their place.
        national_id: national identity numbers, by their checksum; fix puts [ID] in their place.
        api_key: keys and tokens of services; fix puts [KEY] in their place.
    """

    exact_duplicates: RuleMode = "fix"
    near_duplicates: RuleMode = "on"
    conflicting_answers: RuleMode = "on"
    leakage: RuleMode = "fix"
    mojibake: RuleMode = "on"
    invisible_characters: RuleMode = "on"
    markup: RuleMode = "on"
    repeated_text: RuleMode = "on"
    one_word_answers: RuleMode = "on"
    refusals: RuleMode = "on"
    boilerplate: RuleMode = "on"
    language_mix: RuleMode = "on"
    url_only: RuleMode = "on"
    broken_json: RuleMode = "on"
    special_tokens: RuleMode = "on"
    email: RuleMode = "on"
    phone: RuleMode = "on"
    card_number: RuleMode = "on"
    national_id: RuleMode = "on"
    api_key: RuleMode = "on"


class DataSection(Section):
    """Where the examples are and how a row is read.

    Args:
        train: file(s) or hub dataset(s) to train on.
        validation: watched while training; the best checkpoint is the one with the lowest loss here.
        test: answered and scored by `evaluate`.
        benchmarks: further sets whose rows must not be trained on; nothing else is done with them.
        format: the shape of a row; auto detects it.
        mapping: columns of rows of no usual shape.
        system: a system message for every conversation that has none.
        on_bad_row: error ends with a list of the bad rows once a split is read; skip drops and reports them.
        max_length: longest example in tokens; auto takes it from the data. What is cut is reported.
        rules: what the check looks for, and what it does about it.
        accept: codes of findings that are known and meant: an error named here stops nothing.
        class_field: the column that holds a row's class; by default short repeated answers are the classes, if there
            are such.
        balance: what to do where a class is more than `max_class_ratio` times as large as the smallest: none, leave
            rows of it out (downsample), repeat rows of the small ones (upsample), or weigh its tokens less (weight).
        max_class_ratio: how many times as large as the smallest class the largest may be.
        num_proc: processes of the check; auto takes one for each core, and none for small sets.
    """

    train: Sources
    validation: Sources | None = None
    test: Sources | None = None
    benchmarks: Sources | None = None
    format: DataFormat = "auto"
    mapping: ColumnMapping | None = None
    system: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    max_length: Literal["auto"] | Annotated[int, Field(ge=8)] = "auto"
    rules: DataRules = Field(default_factory=DataRules)
    accept: list[str] = Field(default_factory=list)
    class_field: str | None = None
    balance: Literal["none", "downsample", "upsample", "weight"] = "none"
    max_class_ratio: float = Field(3.0, ge=1)
    num_proc: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"

    @model_validator(mode="after")
    def _mapping_has_its_format(self) -> DataSection:
        if self.mapping is not None and self.format not in ("auto", "mapping"):
            raise ValueError(f"format: {self.format} and mapping exclude each other; leave format out")
        if self.mapping is None and self.format == "mapping":
            raise ValueError("format: mapping needs a mapping that names the columns")
        return self


class AdapterSection(Section):
    """The adapter: every field of PEFT's `LoraConfig` (0.21) under PEFT's name, and `method` and `layers` of ours.

    Args:
        method: how the model is adapted.
        layers: all, last:N, or layer indices; shorthand for PEFT's `layers_to_transform`.
        target_modules: all-linear, attention, or module names.

    Defaults are PEFT's, but for `r`, `lora_alpha` and `target_modules`: adapting all linear layers is needed to match
    full fine-tuning (Dettmers et al., QLoRA, 2305.14314, section 4; PEFT's own default for Llama is q and v only).
    """

    method: Literal["lora"] = "lora"
    layers: Literal["all"] | Annotated[str, Field(pattern=r"^last:[1-9]\d*$")] | list[Annotated[int, Field(ge=0)]] = (
        "all"
    )
    r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear", "attention"] | str | list[str] = "all-linear"
    exclude_modules: str | list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    use_qalora: bool = False
    qalora_group_size: int = Field(16, ge=1)
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    layer_replication: list[tuple[int, int]] | None = None
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, int] = Field(default_factory=dict)
    target_parameters: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False
    alora_invocation_tokens: list[int] | None = None
    megatron_config: dict[str, Any] | None = None
    megatron_core: str | None = "megatron.core"
    loftq_config: dict[str, Any] = Field(default_factory=dict)
    eva_config: dict[str, Any] | None = None
    corda_config: dict[str, Any] | None = None
    lora_ga_config: dict[str, Any] | None = None
    velora_config: dict[str, Any] | None = None
    monteclora_config: dict[str, Any] | None = None
    runtime_config: dict[str, Any] = Field(default_factory=dict)
    use_bdlora: dict[str, Any] | None = None
    arrow_config: dict[str, Any] | None = None
    kasa_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_choice_of_layers(self) -> AdapterSection:
        if self.layers != "all" and self.layers_to_transform is not None:
            raise ValueError("layers and layers_to_transform say the same thing; give one")
        return self


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
            up to rounding, and with dropout up to its noise. auto: 2,048 on a CPU, where more are no faster, and
            8,192 on CUDA.
        frozen_layers_cache_gb: most disk for what the layers below the lowest adapter give, computed once for all
            epochs (with `adapter.layers: last:N`); 0 computes it in every step.
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


class Targets(Section):
    """Gates: an evaluation that misses one fails with exit code 1.

    Args:
        bleu: lowest corpus BLEU, a share in [0, 1].
        rouge_l: lowest ROUGE-L, a share in [0, 1].
        exact_match: lowest share of answers equal to the reference.
        perplexity: highest perplexity of the references.
        time_to_first_token_ms: highest median.
        ms_per_token: highest median of the time between tokens, one request at a time.
        peak_memory_gb: highest peak memory of a fresh process that answers, in 10^9 bytes.
        better_than_base: metrics whose paired interval of the gain over the base model must exclude zero.
    """

    bleu: Annotated[float, Field(ge=0, le=1)] | None = None
    rouge_l: Annotated[float, Field(ge=0, le=1)] | None = None
    exact_match: Annotated[float, Field(ge=0, le=1)] | None = None
    perplexity: Annotated[float, Field(ge=1)] | None = None
    time_to_first_token_ms: Annotated[float, Field(gt=0)] | None = None
    ms_per_token: Annotated[float, Field(gt=0)] | None = None
    peak_memory_gb: Annotated[float, Field(gt=0)] | None = None
    better_than_base: list[Literal["bleu", "rouge_l", "exact_match", "perplexity"]] = Field(default_factory=list)


class EvaluateSection(Section):
    """How the test set is answered and scored.

    Args:
        max_new_tokens: longest answer; auto takes 1.5 times the longest reference.
        batch_size: requests answered together.
        limit: score only the first so many test examples.
        tokenize: sacreBLEU's tokenisation; auto takes zh or ja-mecab by the references' script, else 13a.
        bootstrap_samples: resamples behind each interval.
        confidence: the intervals' coverage.
        latency_requests: requests timed one at a time in a fresh process; 0 leaves timing out.
        samples: answers shown side by side.
        targets: the gates.
    """

    max_new_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    batch_size: int = Field(16, ge=1)
    limit: Annotated[int, Field(ge=1)] | None = None
    tokenize: Literal["auto", "13a", "intl", "zh", "ja-mecab", "char", "none"] = "auto"
    bootstrap_samples: int = Field(1000, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    latency_requests: int = Field(8, ge=0)
    samples: int = Field(5, ge=0)
    targets: Targets = Field(default_factory=Targets)


class ExportSection(Section):
    """What is written for use elsewhere.

    Args:
        merge: write the base model with the adapter merged into it.
        parity_prompts: held-out prompts on which adapter and merged model are compared.
        max_shard_size: largest safetensors file.
    """

    merge: bool = True
    parity_prompts: int = Field(16, ge=1)
    max_shard_size: str = Field("5GB", pattern=r"^\d+(MB|GB)$")


FLOAT_WITHOUT_DOT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
"""Numbers such as 3e-4, which YAML 1.1 takes for text; users and other tools write learning rates so."""


class _RecipeDumper(yaml.SafeDumper):
    """Quotes text that the recipe's reader would take for a number."""


_RecipeDumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_WITHOUT_DOT, list("-+0123456789"))


class Recipe(Section):
    """One run, whole."""

    model: ModelSection
    data: DataSection
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    export: ExportSection = Field(default_factory=ExportSection)

    @model_validator(mode="after")
    def _nothing_that_does_nothing(self) -> Recipe:
        problems = []
        if self.data.validation is None:
            problems += [
                f"train.{key} needs data.validation"
                for key in ("eval_steps", "early_stopping_patience")
                if getattr(self.train, key) is not None
            ]
        if self.data.test is None and self.evaluate.targets != Targets():
            problems.append("evaluate.targets needs data.test")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def to_yaml(self) -> str:
        """The recipe with every default written out, as YAML that `load_recipe` reads back."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        """SHA-256 of the recipe's values, in hex; equal for recipes that say the same in other words."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

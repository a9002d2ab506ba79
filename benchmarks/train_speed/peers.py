"""Trains with a peer and says what each step took; a process of its own: `python -m benchmarks.train_speed.peers JOB`.

JOB is a JSON file with the fields of `Job`; the result is written as JSON to its `output`. Nothing of Tunesmith's
training is imported here. Real tokens are those that the attention mask keeps; packed batches have no other.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.train_speed.configurations import ALPHA, ARTICLE_DROPOUT, ARTICLE_LENGTH, LEARNING_RATE, RANK

IGNORED_LABEL = -100
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers by name: PEFT takes no choice of layers beside "all-linear"."""


@dataclass(frozen=True)
class Job:
    """One configuration of a peer.

    Args:
        tool: article, trl or peft.
        model_folder: config.json, safetensors and tokenizer.
        tokens: file with one {"input_ids", "labels"} a line, in the order of training.
        batch: examples of a step.
        steps: optimizer steps.
        precision: fp32 or bf16.
        settings: of trl: autocast, packed (0 or a length); of peft: last, the number of top layers with adapters.
        output: where the result goes.
    """

    tool: str
    model_folder: str
    tokens: str
    batch: int
    steps: int
    precision: str
    settings: dict[str, Any]
    output: str


@dataclass
class Steps:
    """Tokens, seconds and loss of each step."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def read_examples(job: Job) -> list[dict[str, list[int]]]:
    """Ids and labels in the order of training."""
    with Path(job.tokens).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load_model(job: Job, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=dtype, attn_implementation="sdpa")


def arguments(job: Job, **more: Any) -> dict[str, Any]:
    """What Trainer and SFTTrainer share: nothing is evaluated, saved or sent."""
    return {
        "output_dir": str(Path(job.output).parent / "peer"),
        "max_steps": job.steps,
        "per_device_train_batch_size": job.batch,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        **more,
    }


def timed(trainer: Any) -> Steps:
    """Runs `trainer.train()`; a step counts from its first forward pass to the end of the optimizer's step."""
    from transformers import TrainerCallback

    steps = Steps()
    inner: Callable[..., Any] = trainer.training_step

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.tokens.append(0)
            self.started = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.seconds.append(time.monotonic() - self.started)

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                steps.losses.append(float(logs["loss"]))

    def counted(model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        mask = inputs.get("attention_mask")
        steps.tokens[-1] += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return inner(model, inputs, *rest, **options)

    trainer.training_step = counted
    trainer.add_callback(Clock())
    trainer.train()
    return steps


def run_article(job: Job) -> Steps:
    """The article's recipe: `Trainer` and PEFT on q and v, each example padded to 512."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    pad = AutoTokenizer.from_pretrained(job.model_folder).pad_token_id

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return padded(rows, pad, ARTICLE_LENGTH)

    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=ARTICLE_DROPOUT,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    trainer = Trainer(
        model=get_peft_model(load_model(job, "float32"), config),
        args=TrainingArguments(**arguments(job, bf16=job.precision == "bf16", remove_unused_columns=False)),
        train_dataset=read_examples(job),
        data_collator=collate,
    )
    return timed(trainer)


def run_trl(job: Job) -> Steps:
    """TRL's SFTTrainer on all linear layers; its loss never holds all logits (`nll`, formerly `chunked_nll`)."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    is_bf16, packed = job.precision == "bf16", int(job.settings.get("packed", 0))
    more: dict[str, Any] = {"packing": True, "max_length": packed} if packed else {"max_length": None}
    trainer = SFTTrainer(
        model=load_model(job, "bfloat16" if is_bf16 else "float32"),
        args=SFTConfig(**arguments(job, bf16=is_bf16 and bool(job.settings["autocast"]), loss_type="nll", **more)),
        train_dataset=Dataset.from_list(read_examples(job)),
        processing_class=AutoTokenizer.from_pretrained(job.model_folder),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    return timed(trainer)


def run_peft(job: Job) -> Steps:
    """A plain loop around PEFT with adapters on the top layers: whole batches of like length, in another order."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    base = load_model(job, "bfloat16" if job.precision == "bf16" else "float32")
    layers = base.config.num_hidden_layers
    chosen = list(range(layers - int(job.settings["last"]), layers))
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(LLAMA_LINEAR), layers_to_transform=chosen, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0)
    pad = AutoTokenizer.from_pretrained(job.model_folder).pad_token_id
    examples, steps = read_examples(job), Steps()
    starts = range(0, len(examples), job.batch)
    order: list[int] = []
    while len(order) < job.steps:  # every epoch the same batches
        order += random.Random(len(order)).sample(starts, len(starts))
    for start in order[: job.steps]:
        started = time.monotonic()
        batch = padded(examples[start : start + job.batch], pad)
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.losses.append(loss.item())
        steps.seconds.append(time.monotonic() - started)
        steps.tokens.append(int(batch["attention_mask"].sum()))
    return steps


def padded(rows: list[dict[str, list[int]]], pad: int, length: int | None = None) -> dict[str, Any]:
    """Right padding to `length`, or to the longest row; longer rows are cut."""
    import torch

    width = length or max(len(row["input_ids"]) for row in rows)

    def filled(values: list[list[int]], filling: int) -> torch.Tensor:
        return torch.tensor([(one + [filling] * width)[:width] for one in values])

    return {
        "input_ids": filled([row["input_ids"] for row in rows], pad),
        "labels": filled([row["labels"] for row in rows], IGNORED_LABEL),
        "attention_mask": filled([[1] * len(row["input_ids"]) for row in rows], 0),
    }


def resident_bytes() -> int:
    """What this process holds now."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:")), 0)


IMPORTS = {"article": ("transformers.trainer", "peft"), "trl": ("trl.trainer.sft_trainer",), "peft": ("peft",)}
RUNNERS = {"article": run_article, "trl": run_trl, "peft": run_peft}


def main(job_file: Path) -> None:
    """Runs the job of `job_file`."""
    job = Job(**json.loads(job_file.read_text(encoding="utf-8")))
    for module in IMPORTS[job.tool]:
        __import__(module)
    baseline = resident_bytes()
    steps = RUNNERS[job.tool](job)
    result = {
        "step_tokens": steps.tokens,
        "step_seconds": steps.seconds,
        "tokens_per_second": [tokens / seconds for tokens, seconds in zip(steps.tokens, steps.seconds, strict=True)],
        "losses": steps.losses,
        "all_tokens": sum(steps.tokens),
        "all_seconds": sum(steps.seconds),
        "baseline_bytes": baseline,
    }
    Path(job.output).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

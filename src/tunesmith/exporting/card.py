"""The model card (README.md) of an adapter or a merged model, in the form that the Hugging Face hub reads.

It states what the reports measured and what the recipe set, and how to load the folder with stock libraries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from tunesmith._version import __version__
from tunesmith.adapters.contract import Contract
from tunesmith.config import HubDataset, Recipe
from tunesmith.models.catalog import CATALOG, hub_id_of, portable_name
from tunesmith.report import Figure, Report, Table

Kind = Literal["adapter", "merged"]

STAGES = {"check": "Data", "train": "Training", "evaluate": "Evaluation", "export": "Export"}
"""Stages whose figures and tables the card shows, with their headings."""

LONGEST_TABLE = 20
"""Rows; longer tables belong to the report."""


def model_card(recipe: Recipe, reports: Mapping[str, Report], *, kind: Kind, contract: Contract | None = None) -> str:
    """The text of README.md, ending in a newline.

    Args:
        recipe: the run's recipe.
        reports: the reports there are, by stage; those that are missing are left out.
        kind: adapter or merged.
        contract: the template contract, for stop tokens and the like.
    """
    parts = [_front_matter(recipe, kind), *_introduction(recipe, kind)]
    for stage, heading in STAGES.items():
        if (report := reports.get(stage)) is not None:
            parts += _results(heading, report)
    parts += _settings(recipe)
    if contract is not None:
        parts += _contract(contract)
    parts += _loading(recipe, kind, contract)
    parts += _limits(recipe, kind)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def escape(text: object) -> str:
    """`text` as one cell of a Markdown table: no line ends, no bars, no markup, no HTML."""
    flat = " ".join(str(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)


def _front_matter(recipe: Recipe, kind: Kind) -> str:
    values: dict[str, Any] = {}
    if (base := hub_id_of(recipe.model.name)) is not None:
        values["base_model"] = base
        values["base_model_relation"] = "adapter" if kind == "adapter" else "finetune"
    if (entry := CATALOG.get(recipe.model.name)) is not None:
        values["license"] = entry.license.lower()
    values["library_name"] = "peft" if kind == "adapter" else "transformers"
    values["pipeline_tag"] = "text-generation"
    values["tags"] = ["lora", "tunesmith"]
    datasets = [source.path for source in recipe.data.train if isinstance(source, HubDataset)]
    if datasets:
        values["datasets"] = datasets
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _introduction(recipe: Recipe, kind: Kind) -> list[str]:
    base = hub_id_of(recipe.model.name) or portable_name(recipe.model.name)
    if kind == "adapter":
        what = f"A LoRA adapter for {escape(base)}, in PEFT's format."
        title = f"# LoRA adapter for {escape(base)}"
    else:
        what = f"{escape(base)} with a LoRA adapter merged into its weights; it loads without PEFT."
        title = f"# {escape(base)}, fine-tuned and merged"
    return [title, f"{what} Made with Tunesmith {__version__}."]


def _results(heading: str, report: Report) -> list[str]:
    parts = []
    if report.figures:
        rows = tuple((figure.label, _value(figure), figure.detail) for figure in report.figures)
        parts.append(_table(("", "value", "note") if any(row[2] for row in rows) else ("", "value"), rows))
    for table in report.tables:
        if 0 < len(table.rows) <= LONGEST_TABLE:
            parts += [f"### {escape(table.title)}", _markdown(table)]
    if report.findings:
        parts.append("\n".join(f"- {f.severity.value}: {escape(f.message)}" for f in report.findings))
    return [f"## {heading}", *parts] if parts else []


def _value(figure: Figure) -> str:
    value = _number(figure.value)
    return f"{value} {figure.unit}".strip()


def _number(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _markdown(table: Table) -> str:
    return _table(table.columns, tuple(tuple(_number(cell) for cell in row) for row in table.rows))


def _table(columns: tuple[str, ...], rows: tuple[tuple[object, ...], ...]) -> str:
    width = len(columns)
    lines = ["| " + " | ".join(escape(column) for column in columns) + " |", "|" + " --- |" * width]
    lines += ["| " + " | ".join(escape(cell) for cell in row[:width]) + " |" for row in rows]
    return "\n".join(lines)


def _settings(recipe: Recipe) -> list[str]:
    """What the recipe sets, without the defaults that say nothing, and without the data's paths."""
    settings = {**recipe.adapter.model_dump(), **recipe.train.model_dump()}
    rows = tuple((key, value) for key, value in settings.items() if key not in _UNTOLD and not _says_nothing(value))
    return ["## Training settings", _table(("setting", "value"), rows)]


def _says_nothing(value: object) -> bool:
    """Whether a setting is off. A number never is: a seed of 0 is a seed."""
    return value is None or value is False or value == {} or value == []


_UNTOLD = ("megatron_core", "qalora_group_size", "report_to", "logging_steps", "save_steps", "save_total_limit")


def _contract(contract: Contract) -> list[str]:
    rows = [("base weights (SHA-256)", contract.weights_digest[:16]), ("precision", contract.precision)]
    for key, value in contract.template.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else _number(value)
        rows.append((key.replace("_", " "), shown[:16] if key.endswith("digest") else shown))
    text = (
        "The tokenizer in this folder carries the chat template that the training used. Answers end at the stop tokens "
        "below; `tunesmith.json` holds the same for programs, with golden prompts to check against."
    )
    return ["## Chat template", text, _table(("", "value"), tuple(rows))]


def _loading(recipe: Recipe, kind: Kind, contract: Contract | None) -> list[str]:
    base = hub_id_of(recipe.model.name) or "path/to/the/base/model"
    if kind == "adapter":
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
        load = (
            f"folder = {'path/to/this/adapter'!r}\n"
            "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
            f'base = AutoModelForCausalLM.from_pretrained({base!r}, dtype="auto")\n'
            "model = PeftModel.from_pretrained(base, folder).eval()"
        )
    else:
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        load = (
            f"folder = {'path/to/this/model'!r}\n"
            "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
            'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()'
        )
    stops = list(contract.template.get("stop_token_ids", ())) if contract is not None else []
    stop = f", eos_token_id={stops}" if stops else ""
    use = (
        'messages = [{"role": "user", "content": "Hello"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ")\n"
        f"output = model.generate(**inputs, max_new_tokens=128, do_sample=False{stop})\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))'
    )
    return ["## Use", f"```python\n{imports}\n\n{load}\n\n{use}\n```"]


def _limits(recipe: Recipe, kind: Kind) -> list[str]:
    points = [
        "It was trained for the task of its training data; other requests are answered no better, and may be answered "
        "worse, than by the base model.",
        "What the base model gets wrong, and its licence, apply here too.",
    ]
    entry = CATALOG.get(recipe.model.name)
    if entry is not None and kind == "adapter":
        points.append(
            f"It was trained on the weights of {escape(Path(entry.member).name)}, written out at full precision. The "
            "original weights on the hub differ from those by a quantisation, so there the figures above hold "
            "approximately; they hold for the merged model."
        )
    if recipe.data.test is None:
        points.append("No test set was given, so no quality was measured.")
    return ["## Limits", "\n".join(f"- {point}" for point in points)]

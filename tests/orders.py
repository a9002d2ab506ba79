"""A small set of orders and a recipe for a tiny model: the whole pipeline in seconds."""

import json
from pathlib import Path
from typing import Any

ITEMS = ("tea", "honey", "soap", "rice", "ink", "salt", "jam", "milk")


def write_orders(path: Path, count: int, *, first: int = 0) -> Path:
    """Writes `count` rows "2 tea" -> {"tea":2}, all different for different numbers."""
    rows = []
    for number in range(first, first + count):
        item, quantity = ITEMS[number % len(ITEMS)], number // len(ITEMS) + 1
        messages = [
            {"role": "user", "content": f"{quantity} {item}"},
            {"role": "assistant", "content": json.dumps({item: quantity})},
        ]
        rows.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def tiny_recipe(folder: Path, base: Path, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe over files written to `folder`; `sections` are merged into its own."""
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(base), "precision": "fp32"},
        "data": {
            "train": str(write_orders(folder / "train.jsonl", 24)),
            "validation": str(write_orders(folder / "validation.jsonl", 6, first=100)),
            "test": str(write_orders(folder / "test.jsonl", 5, first=200)),
        },
        "adapter": {"r": 4, "lora_alpha": 8},
        "train": {"max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "logging_steps": 2},
        "evaluate": {"max_new_tokens": 6, "latency_requests": 0, "bootstrap_samples": 100},
        "export": {"parity_prompts": 3},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return values

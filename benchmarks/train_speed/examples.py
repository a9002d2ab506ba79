"""The examples, the same for every tool, and the model of 1B shape.

Peers get the token ids and labels that Tunesmith makes of a row, so all train on the same tokens.
"""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.records import Example, Message, Place, TokenizedExample
from tunesmith.data.template import ChatTemplate
from tunesmith.models.folder import load_tokenizer

ROOT = Path(__file__).parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"
DEMO = ROOT / "data" / "orders" / "train.jsonl"


@dataclass(frozen=True)
class Row:
    """One question and its answer."""

    prompt: str
    answer: str

    def as_json(self) -> str:
        """One line of a messages file."""
        turns = [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]
        return json.dumps({"messages": turns}, ensure_ascii=False)


def default_source() -> Path:
    """GSM8K's training set where it is beside the checkout, else the demo's."""
    return GSM8K if GSM8K.is_file() else DEMO


def first_rows(count: int, path: Path) -> list[Row]:
    """The first `count` rows of `path`; where there are fewer, they begin again with a number after the prompt."""
    rows = [_row(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    again = (
        Row(f"{row.prompt} ({number})" if number else row.prompt, row.answer)
        for number in itertools.count()
        for row in rows
    )
    return list(itertools.islice(again, count))


def _row(line: str) -> Row:
    values = json.loads(line)
    if "messages" in values:
        prompt, answer = (turn["content"] for turn in values["messages"])
        return Row(prompt, answer)
    return Row(values["question"], values["answer"])


def shortest(rows: Sequence[Row], count: int) -> list[Row]:
    """The `count` rows with the fewest characters."""
    return sorted(rows, key=lambda row: len(row.prompt) + len(row.answer))[:count]


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes a messages file, as Tunesmith reads it."""
    path.write_text("".join(f"{row.as_json()}\n" for row in rows), encoding="utf-8")


def tokenize(rows: Sequence[Row], model_folder: Path) -> list[TokenizedExample]:
    """The rows as Tunesmith trains on them."""
    template = ChatTemplate(load_tokenizer(model_folder))
    turns = [(Message("user", row.prompt), Message("assistant", row.answer)) for row in rows]
    return [template.encode(Example(two, Place("row", number))) for number, two in enumerate(turns, 1)]


def grouped(examples: Sequence[TokenizedExample], batch: int) -> list[TokenizedExample]:
    """The examples in batches of like length, the batches shuffled: what `group_by_length` gives to a small set.

    transformers' own sampler groups a set of a few batches hardly at all, so peers get them in this order.
    """
    by_length = sorted(examples, key=lambda example: -len(example.input_ids))
    batches = [by_length[at : at + batch] for at in range(0, len(by_length), batch)]
    random.Random(0).shuffle(batches)
    return [example for one in batches for example in one]


def write_tokens(examples: Sequence[TokenizedExample], path: Path) -> None:
    """Writes ids and labels, as `peers` reads them."""
    lines = ({"input_ids": list(one.input_ids), "labels": list(one.labels)} for one in examples)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def write_model_1b(tokenizer_folder: Path, folder: Path, *, layers: int) -> None:
    """Writes a Llama of 1B shape with random weights, in bf16, with the tokenizer of another model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(tokenizer_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype="bfloat16",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.bfloat16()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""The template contract: what an adapter was trained with, in `tunesmith.json` beside PEFT's files.

An adapter is only right on the weights, with the chat template and with the tokenizer it was trained with; most tools
notice none of these. Whatever loads an adapter calls `check_contract`, and `check_golden` where the model is at hand.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith._version import __version__
from tunesmith.errors import ContractError
from tunesmith.models.generation import device_of, logits_at
from tunesmith.models.modules import evaluation_mode

CONTRACT_FILE = "tunesmith.json"
FORMAT = 1

TOP_LOGITS = 5
"""How many logits of the next token a golden prompt holds."""

GOLDEN_TEXTS = (
    "What is the capital of France? Answer in one word.",
    "请用一句话介绍长江。",
    'Reply in JSON: {"items": [{"name": "tea", "quantity": 2}]}\n\n\tand café №5 too.',
)
"""User messages for golden prompts: none of the user's data leaves with the adapter."""

RELATIVE_TOLERANCE = {"fp32": 1e-4, "fp16": 3e-3, "bf16": 5e-2}
"""How far a golden logit may move, as a share of the prompt's largest one: some ten roundings of the number format.

In bf16 an adapter by PiSSA, whose base was rounded when it was taken apart, agrees no closer than this.
"""


@dataclass(frozen=True)
class GoldenPrompt:
    """A prompt and what the trained model made of it.

    Args:
        token_ids: the whole prompt.
        top: (token id, logit) of the next token, the likeliest first.
        text: the user message that the prompt was made of, if it is to check the tokenizer.
    """

    token_ids: tuple[int, ...]
    top: tuple[tuple[int, float], ...]
    text: str | None = None


@dataclass(frozen=True)
class Contract:
    """What an adapter, or a model merged from one, was trained with.

    Args:
        base_model: the base model's name, never a path of this machine (`models.catalog.portable_name`).
        weights_digest: digest of the weights that the folder is used with: the base's for an adapter, its own for a
            merged model.
        template: what `ChatTemplate.contract()` gave: template digest, stop tokens, BOS policy.
        precision: fp32, bf16 or fp16, as it was trained.
        recipe_digest: `Recipe.digest()`.
        golden: golden prompts, made by `make_golden`.
        kind: adapter or merged.
        tunesmith: the version that wrote it.
    """

    base_model: str
    weights_digest: str
    template: dict[str, Any]
    precision: str
    recipe_digest: str
    golden: tuple[GoldenPrompt, ...] = ()
    kind: str = "adapter"
    tunesmith: str = __version__

    def to_json(self) -> str:
        """The text of tunesmith.json."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, ensure_ascii=False, indent=2) + "\n"


def read_contract(folder: Path) -> Contract | None:
    """The contract in `folder`, or None where there is no tunesmith.json, as in a folder by stock PEFT.

    Raises:
        ContractError: the file is damaged, or of a newer format.
    """
    path = folder / CONTRACT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise _damaged(path, "holds no object")
    version = data.pop("format", None)
    if isinstance(version, int) and version > FORMAT:
        raise ContractError(
            f"this contract has format {version}, written by a newer Tunesmith; this one reads format {FORMAT}",
            place=str(path),
            remedy="pip install -U tunesmith",
        )
    if version != FORMAT:
        raise _damaged(path, f"has no known format ({version!r})")
    return _parse(path, data)


def make_golden(
    model: PreTrainedModel | PeftModel, prompts_ids: Sequence[Sequence[int]], texts: Sequence[str] | None = None
) -> tuple[GoldenPrompt, ...]:
    """Runs the model on each prompt and notes the top logits of the next token.

    Args:
        model: the trained model.
        prompts_ids: token ids of each prompt.
        texts: the user message that each was made of.
    """
    golden = []
    for number, ids in enumerate(prompts_ids):
        values_K, ids_K = _next_logits(model, ids).topk(min(TOP_LOGITS, model.config.get_text_config().vocab_size))
        top = tuple((int(i), round(float(v), 5)) for i, v in zip(ids_K, values_K, strict=True))
        golden.append(GoldenPrompt(tuple(int(i) for i in ids), top, texts[number] if texts else None))
    return tuple(golden)


def check_contract(
    contract: Contract,
    *,
    base_digest: str | None = None,
    template_contract: dict[str, Any] | None = None,
    prompt_encoder: Callable[[str], Sequence[int]] | None = None,
    place: str | None = None,
) -> None:
    """Compares the contract with what the adapter is about to be used with; what is None is not compared.

    The date of a template that names today's is no difference. Golden prompts are compared as they were rendered when
    trained, so `prompt_encoder` must be of `ChatTemplate(tokenizer, date=contract.template.get("date"))`.

    Args:
        contract: from the adapter's folder.
        base_digest: `weights_digest` of the base model at hand.
        template_contract: `ChatTemplate.contract()` of the template at hand.
        prompt_encoder: gives the token ids of a prompt of one user message, with the template at hand and the
            contract's date.
        place: the adapter's folder, for the message.

    Raises:
        ContractError: naming each difference and its remedy.
    """
    differences = []
    if base_digest is not None and base_digest != contract.weights_digest:
        differences.append(
            f"base model: trained on {contract.base_model} (weights {_short(contract.weights_digest)}), used with "
            f"other weights ({_short(base_digest)}); remedy: load {contract.base_model} in the same revision"
        )
    if template_contract is not None:
        differences += _template_differences(contract.template, template_contract)
    if prompt_encoder is not None:
        differences += _tokenizer_differences(contract, prompt_encoder)
    if differences:
        raise ContractError(
            "the adapter is used with other things than it was trained with\n"
            + "\n".join(f"  - {difference}" for difference in differences),
            place=place,
        )


def refuse_other_answers(problems: Sequence[str], place: str) -> None:
    """Raises ContractError if there are problems, from `check_golden` or `golden_differences`."""
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ContractError(
            f"the adapter does not answer as the trained one did\n{lines}",
            place=place,
            remedy="its files were changed or mixed with others; train or copy it again",
        )


def check_golden(model: PreTrainedModel | PeftModel, contract: Contract) -> list[str]:
    """Runs the golden prompts and compares; one line for each that differs beyond `RELATIVE_TOLERANCE`.

    The tolerance is that of the coarser number format, the contract's or the model's at hand.
    """
    return golden_differences(
        contract,
        lambda ids: _next_logits(model, ids),
        dtype=_compute_dtype(model),
        vocabulary_size=model.config.get_text_config().vocab_size,
    )


def golden_differences(
    contract: Contract,
    next_logits: Callable[[Sequence[int]], torch.Tensor],
    *,
    dtype: torch.dtype,
    vocabulary_size: int,
) -> list[str]:
    """As `check_golden`, for whatever computes logits.

    Args:
        contract: from the adapter's folder.
        next_logits: gives the logits [V] of the token after some tokens, in float32 on the CPU.
        dtype: what it computes in.
        vocabulary_size: V.
    """
    here = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
    share = max(RELATIVE_TOLERANCE[here], RELATIVE_TOLERANCE.get(contract.precision, 0.0))
    problems = []
    for number, prompt in enumerate(contract.golden, start=1):
        if max([*prompt.token_ids, *(i for i, _ in prompt.top)]) >= vocabulary_size:
            problems.append(f"golden prompt {number}: holds tokens that this model's vocabulary does not have")
            continue
        logits_V = next_logits(prompt.token_ids)
        tolerance = share * max(1.0, *(abs(value) for _, value in prompt.top))
        worst = max(abs(float(logits_V[i]) - value) for i, value in prompt.top)
        # not <=, so that NaN is a problem too
        if not worst <= tolerance:
            problems.append(
                f"golden prompt {number}: a logit differs by {worst:.3g} from the trained model's; "
                f"{tolerance:.3g} is allowed in {contract.precision}"
            )
    return problems


def _next_logits(model: PreTrainedModel | PeftModel, ids: Sequence[int]) -> torch.Tensor:
    """Logits [V] of the token after `ids`, in float32."""
    with evaluation_mode(model), torch.inference_mode(), _autocast(model):
        input_ids_1T = torch.tensor([list(ids)], device=device_of(model))
        last_1 = torch.tensor([len(ids) - 1], device=device_of(model))
        return logits_at(model, input_ids_1T, last_1)[0, 0].float().cpu()


def _compute_dtype(model: PreTrainedModel | PeftModel) -> torch.dtype:
    half = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
    return next(iter(half), torch.float32)


def _autocast(model: PreTrainedModel | PeftModel) -> AbstractContextManager[Any]:
    """Autocast for a model with trainable float32 weights on a base of half precision, as it was trained."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if len(dtypes) > 1 and _compute_dtype(model) != torch.float32:
        return torch.autocast(model.device.type, dtype=_compute_dtype(model))
    return nullcontext()


_TEMPLATE_REMEDIES = (
    ("stop", "stop tokens", "end answers at the contract's stop tokens, or use the tokenizer in the adapter's folder"),
    ("bos", "beginning-of-sequence token", "use the tokenizer in the adapter's folder"),
    ("", "chat template", "use the tokenizer in the adapter's folder, which carries the template"),
)


def _template_differences(trained: dict[str, Any], here: dict[str, Any]) -> list[str]:
    here = json.loads(json.dumps(here))
    differences = []
    for key in sorted((set(trained) | set(here)) - {"date"}):
        if trained.get(key) != here.get(key):
            label, remedy = next((label, r) for part, label, r in _TEMPLATE_REMEDIES if part in key.lower())
            differences.append(
                f"{label} ({key}): trained with {_short(trained.get(key))}, used with {_short(here.get(key))}; "
                f"remedy: {remedy}"
            )
    return differences


def _tokenizer_differences(contract: Contract, prompt_encoder: Callable[[str], Sequence[int]]) -> list[str]:
    for number, prompt in enumerate(contract.golden, start=1):
        if prompt.text is None:
            continue
        ids = tuple(int(i) for i in prompt_encoder(prompt.text))
        if ids != prompt.token_ids:
            at = next((k for k, (a, b) in enumerate(zip(ids, prompt.token_ids, strict=False)) if a != b), None)
            at = min(len(ids), len(prompt.token_ids)) if at is None else at
            return [
                f"tokenizer: golden prompt {number} has other token ids from position {at} on "
                f"(trained: {list(prompt.token_ids[at : at + 4])}, here: {list(ids[at : at + 4])}); "
                "remedy: use the tokenizer in the adapter's folder"
            ]
    return []


def _short(value: Any) -> str:
    """A digest by its first 12 characters, anything else whole."""
    if isinstance(value, str) and len(value) >= 32 and " " not in value:
        return value[:12]
    return repr(value)


def _damaged(path: Path, why: str) -> ContractError:
    return ContractError(
        f"the contract cannot be read: {why}",
        place=str(path),
        remedy="copy the adapter's folder again, or remove the file to use the adapter unchecked",
    )


def _parse(path: Path, data: dict[str, Any]) -> Contract:
    fields = {field.name for field in dataclasses.fields(Contract)}
    if data.keys() != fields:
        missing, unknown = sorted(fields - data.keys()), sorted(data.keys() - fields)
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown keys {', '.join(unknown)}"] * bool(
            unknown
        )
        raise _damaged(path, " and ".join(parts))
    for name in fields - {"template", "golden"}:
        if not isinstance(data[name], str):
            raise _damaged(path, f"{name} is no text")
    if not isinstance(data["template"], dict):
        raise _damaged(path, "template is no object")
    if data["precision"] not in RELATIVE_TOLERANCE:
        raise _damaged(path, f"precision is {data['precision']!r}")
    if not isinstance(data["golden"], list):
        raise _damaged(path, "golden is no list")
    golden = tuple(_parse_golden(path, number, item) for number, item in enumerate(data["golden"], start=1))
    return Contract(**{**data, "golden": golden})


def _parse_golden(path: Path, number: int, item: Any) -> GoldenPrompt:
    try:
        ids, top, text = item["token_ids"], item["top"], item["text"]
        right = (
            len(item) == 3
            and ids
            and top
            and all(type(i) is int and i >= 0 for i in [*ids, *(pair[0] for pair in top)])
            and all(len(pair) == 2 and type(pair[1]) in (int, float) for pair in top)
            and (text is None or isinstance(text, str))
        )
        if right:
            return GoldenPrompt(tuple(ids), tuple((pair[0], float(pair[1])) for pair in top), text)
    except (KeyError, TypeError, IndexError):
        pass
    raise _damaged(path, f"golden prompt {number} is not of the form token_ids, top, text")

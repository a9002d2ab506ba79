import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.helpers import PEFT_WARNS, contract, in_dtype, trained
from tests.data.templates import DATED
from tests.tiny import byte_tokenizer, tiny_model
from tunesmith.adapters.contract import (
    CONTRACT_FILE,
    Contract,
    GoldenPrompt,
    check_contract,
    check_golden,
    make_golden,
    read_contract,
)
from tunesmith.adapters.files import load_adapter, save_adapter
from tunesmith.data.records import Message
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import ContractError

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)

ids = st.integers(0, 10**6)
prompts = st.builds(
    GoldenPrompt,
    token_ids=st.lists(ids, min_size=1, max_size=5).map(tuple),
    top=st.lists(st.tuples(ids, st.floats(-1e3, 1e3)), min_size=1, max_size=5).map(tuple),
    text=st.none() | st.text(),
)


@given(golden=st.lists(prompts, max_size=3).map(tuple), name=st.text())
def test_a_contract_is_read_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, golden: Any, name: str) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    written = contract(base_model=name, golden=golden)
    (folder / CONTRACT_FILE).write_text(written.to_json(), encoding="utf-8")
    assert read_contract(folder) == written


def test_a_folder_by_stock_peft_has_no_contract(tmp_path: Path) -> None:
    assert read_contract(tmp_path) is None


def edited(**changes: Any) -> str:
    values = {**json.loads(contract(golden=(GoldenPrompt((1,), ((2, 0.5),)),)).to_json()), **changes}
    return json.dumps({key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds no object"),
        ("[" * 100_000, "not valid JSON"),
        (edited(format=2), "newer Tunesmith"),
        (edited(format="1"), "no known format"),
        (edited(weights_digest=None), "lacks weights_digest"),
        (edited(extra=1), "unknown keys extra"),
        (edited(base_model=3), "base_model is no text"),
        (edited(template=[]), "template is no object"),
        (edited(precision="int8"), "precision is 'int8'"),
        (edited(golden={}), "golden is no list"),
        (edited(golden=[{"token_ids": [1], "top": [[2, 0.5]]}]), "golden prompt 1"),
        (edited(golden=[{"token_ids": [-1], "top": [[2, 0.5]], "text": None}]), "golden prompt 1"),
        (edited(golden=[{"token_ids": [1], "top": [[2, "x"]], "text": None}]), "golden prompt 1"),
        (edited(golden=[3]), "golden prompt 1"),
    ],
)
def test_a_damaged_contract_says_what_is_wrong_and_where(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / CONTRACT_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ContractError, match=words) as caught:
        read_contract(tmp_path)
    assert str(tmp_path / CONTRACT_FILE) in str(caught.value)
    assert caught.value.remedy


def encode(text: str) -> list[int]:
    return list(text.encode())


def with_golden() -> Contract:
    return contract(golden=(GoldenPrompt(tuple(encode("hello")), ((1, 0.5),), "hello"),))


def test_the_same_things_pass() -> None:
    same = with_golden()
    check_contract(same, base_digest=same.weights_digest, template_contract=dict(same.template), prompt_encoder=encode)
    # A template's contract may hold tuples, which JSON gives back as lists.
    check_contract(same, template_contract={**same.template, "stop_token_ids": (260,)})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"base_digest": "e" * 64}, ["base model", "tiny", "dddddddddddd", "eeeeeeeeeeee", "load tiny"]),
        ({"template": {"digest": "u" * 64}}, ["chat template (digest)", "tttttttttttt", "uuuuuuuuuuuu"]),
        ({"template": {"stop_token_ids": [258]}}, ["stop tokens", "[260]", "[258]"]),
        ({"template": {"prompts_begin_with_bos": True}}, ["beginning-of-sequence", "False", "True"]),
        ({"prompt_encoder": lambda text: encode(text[:-1] + "x")}, ["tokenizer", "position 4", "[111]", "[120]"]),
        ({"prompt_encoder": lambda text: encode(text)[:2]}, ["tokenizer", "position 2"]),
    ],
)
def test_each_difference_is_named_with_its_remedy(arguments: dict[str, Any], words: list[str]) -> None:
    if "template" in arguments:
        arguments = {"template_contract": {**contract().template, **arguments["template"]}}
    with pytest.raises(ContractError) as caught:
        check_contract(with_golden(), **arguments, place="runs/x/adapter")
    for word in [*words, "remedy", "runs/x/adapter"]:
        assert word in str(caught.value)


def test_another_day_is_no_difference_and_golden_prompts_are_those_of_the_contracts(tmp_path: Path) -> None:
    def template_of(date: str | None) -> ChatTemplate:
        return ChatTemplate(byte_tokenizer(DATED), date=date)

    def encoder(template: ChatTemplate) -> Callable[[str], list[int]]:
        return lambda text: template.encode_prompt([Message("user", text)])

    trained_with = template_of("2024-02-29")
    golden = GoldenPrompt(tuple(encoder(trained_with)("hello")), ((1, 0.5),), "hello")
    written = contract(template=trained_with.contract(), golden=(golden,))
    (tmp_path / CONTRACT_FILE).write_text(written.to_json(), encoding="utf-8")
    agreed = read_contract(tmp_path)
    assert agreed is not None
    check_contract(agreed, template_contract=template_of(None).contract())
    again = template_of(agreed.template.get("date"))
    check_contract(agreed, template_contract=again.contract(), prompt_encoder=encoder(again))
    with pytest.raises(ContractError, match="token ids"):
        check_contract(agreed, prompt_encoder=encoder(template_of("2025-01-01")))


def test_all_differences_are_told_at_once() -> None:
    with pytest.raises(ContractError) as caught:
        check_contract(with_golden(), base_digest="x", template_contract={}, prompt_encoder=lambda _: [])
    assert str(caught.value).count("\n  - ") == 5


def test_golden_prompts_hold_the_models_top_logits() -> None:
    model = tiny_model().train()
    (golden,) = make_golden(model, [[5, 6, 7]], ["text"])
    assert model.training
    with torch.inference_mode():
        logits_V = model.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1]
    values, indices = logits_V.topk(5)
    assert [i for i, _ in golden.top] == indices.tolist()
    assert [v for _, v in golden.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert (golden.token_ids, golden.text) == ((5, 6, 7), "text")


def test_golden_prompts_notice_another_adapter_and_allow_rounding() -> None:
    model = trained()
    agreed = contract(golden=make_golden(model, [[5, 6, 7], [200, 3]]))
    assert check_golden(trained(), agreed) == []
    assert len(check_golden(tiny_model(), agreed)) == 2
    half = in_dtype(tiny_model(), torch.bfloat16)
    assert check_golden(half, contract(golden=make_golden(tiny_model(), [[5, 6, 7]]))) == []


def test_an_adapter_by_pissa_agrees_in_bf16_after_it_was_saved(tmp_path: Path) -> None:
    model = trained(in_dtype(tiny_model(seed=2), torch.bfloat16), init_lora_weights="pissa")
    agreed = contract(precision="bf16", golden=make_golden(model, [[5, 6, 7], [200, 3]]))
    save_adapter(model, tmp_path / "adapter", tokenizer=byte_tokenizer(), contract=agreed)
    base = in_dtype(tiny_model(seed=2), torch.bfloat16)
    assert check_golden(load_adapter(base, tmp_path / "adapter", precision="bf16"), agreed) == []


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-4), ("fp16", 3e-3), ("bf16", 5e-2)])
def test_golden_logits_may_move_by_a_share_of_the_largest(precision: str, allowed: float) -> None:
    model = tiny_model()
    (golden,) = make_golden(model, [[5, 6, 7]])
    largest = max(1.0, *(abs(value) for _, value in golden.top))
    for share, problems in ((0.8, 0), (1.3, 1)):
        (token, value), *rest = golden.top
        moved = dataclasses.replace(golden, top=((token, value - share * allowed * largest), *rest))
        assert len(check_golden(model, contract(precision=precision, golden=(moved,)))) == problems


def test_golden_prompts_notice_nan_and_a_smaller_vocabulary() -> None:
    agreed = contract(golden=make_golden(tiny_model(), [[5, 263]]))
    broken = tiny_model()
    with torch.no_grad():
        broken.get_parameter("model.norm.weight").fill_(float("nan"))
    assert "nan" in check_golden(broken, agreed)[0]
    assert (
        "vocabulary"
        in check_golden(tiny_model(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2), agreed)[0]
    )


def test_a_contract_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        contract().kind = "merged"  # type: ignore[misc]

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from tests.adapters.helpers import PEFT_WARNS, contract, trained
from tests.tiny import byte_tokenizer, tiny_model_folder
from tunesmith.adapters.files import save_adapter
from tunesmith.config import Recipe
from tunesmith.exporting.card import escape, model_card
from tunesmith.report import Report, Severity, Table


def recipe(name: str = "smollm2-135m", **sections: Any) -> Recipe:
    return Recipe.model_validate({"model": {"name": name}, "data": {"train": "secret/train.jsonl"}, **sections})


def reports() -> dict[str, Report]:
    report = Report("evaluate", "Evaluation")
    report.add_figure("bleu", "BLEU", 0.61234, "", "95 % interval 0.58 to 0.64")
    report.tables.append(
        Table("Base | tuned", ("metric", "base", "tuned"), (("BLEU", 0.01, 0.61234), ("ROUGE|L", None, 1)))
    )
    report.add_finding(Severity.WARNING, "few", "only <3> examples")
    return {"evaluate": report}


def front_matter(card: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return values


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(model_card(recipe(), {}, kind="adapter")) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "tunesmith"],
    }
    assert front_matter(model_card(recipe(), {}, kind="merged"))["library_name"] == "transformers"


@pytest.mark.parametrize("name", ["./models/mine", "/home/me/mine", "mine", "model.gguf", "folder/model.gguf"])
def test_a_local_model_is_not_given_as_a_hub_id(name: str) -> None:
    card = model_card(recipe(name), {}, kind="adapter")
    assert "base_model" not in front_matter(card)
    assert "/home/me" not in card


def test_a_folder_that_looks_like_a_hub_id_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert front_matter(model_card(recipe("owner/model"), {}, kind="adapter"))["base_model"] == "owner/model"
    (tmp_path / "owner" / "model").mkdir(parents=True)
    card = model_card(recipe("owner/model"), {}, kind="adapter")
    assert "base_model" not in front_matter(card)
    assert "owner" not in card


def test_figures_tables_and_findings_are_shown() -> None:
    card = model_card(recipe(), reports(), kind="adapter")
    assert "| BLEU | 0.6123 | 95 % interval 0.58 to 0.64 |" in card
    assert "| metric | base | tuned |" in card
    assert r"| ROUGE\|L |  | 1 |" in card
    assert "warning: only &lt;3&gt; examples" in card


def test_missing_reports_are_left_out() -> None:
    card = model_card(recipe(), {}, kind="adapter")
    assert "## Evaluation" not in card
    assert "## Training settings" in card
    assert "No test set was given" in card


def test_settings_and_contract_are_told_and_the_datas_paths_are_not() -> None:
    card = model_card(recipe(adapter={"r": 7}), {}, kind="adapter", contract=contract())
    assert "| r | 7 |" in card
    assert "| stop token ids | 260 |" in card
    assert "eos_token_id=[260]" in card
    assert "secret" not in card


def test_a_setting_of_zero_is_told_and_one_that_is_off_is_not() -> None:
    card = model_card(recipe(train={"seed": 0, "warmup_ratio": 0.0}), {}, kind="adapter")
    assert "| seed | 0 |" in card
    assert "use\\_dora" not in card
    assert "use\\_dora" in model_card(recipe(adapter={"use_dora": True}), {}, kind="adapter")


def test_a_quantised_catalog_model_is_told() -> None:
    assert "Q4" in model_card(recipe(), {}, kind="adapter")
    assert "Q4" not in model_card(recipe("owner/model"), {}, kind="adapter")


@given(text=st.text())
def test_any_text_stays_one_cell(text: str) -> None:
    cell = escape(text)
    assert len(cell.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", cell)
    assert "<" not in cell


def code_of(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.filterwarnings(PEFT_WARNS)
@pytest.mark.filterwarnings("ignore:Passing .*generation:UserWarning")
def test_the_code_of_the_card_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model_folder(tmp_path / "base")
    save_adapter(trained(), tmp_path / "adapter", tokenizer=byte_tokenizer(), contract=contract())
    code = code_of(model_card(recipe("./base"), {}, kind="adapter", contract=contract()))
    code = code.replace("path/to/this/adapter", str(tmp_path / "adapter"))
    code = code.replace("path/to/the/base/model", str(tmp_path / "base")).replace("=128", "=4")
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(code, scope)  # the code is what is tested
    assert isinstance(scope["model"], PeftModel)
    assert capsys.readouterr().out
    ast.parse(code_of(model_card(recipe(), {}, kind="merged")))

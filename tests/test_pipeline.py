"""The stages together, on tiny random models: check -> train -> evaluate -> export, and what stops them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith
from tests.orders import tiny_recipe, write_orders
from tests.tiny import FAMILIES, tiny_model_folder
from tunesmith.errors import ContractError, DataError, RunError
from tunesmith.recipe_file import load_recipe

STAGES = ["check", "train", "evaluate", "export"]


def run_all(folder: Path, family: str = "llama", **sections: dict[str, Any]) -> list[tunesmith.Report]:
    model = tiny_model_folder(folder / "model", family)
    return tunesmith.run(load_recipe(tiny_recipe(folder, model, **sections)), folder / "run")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_from_check_to_a_merged_model_that_stock_tools_load(family: str, tmp_path: Path) -> None:
    reports = run_all(tmp_path, family)
    assert [report.stage for report in reports] == STAGES
    assert all(report.passed for report in reports), [report.errors for report in reports]
    ids_1T = torch.tensor([[5, 9, 77, 30]])
    run = tmp_path / "run"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain_logits = base(ids_1T).logits
    adapted = PeftModel.from_pretrained(base, run / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    torch.testing.assert_close(merged(ids_1T).logits, adapted(ids_1T).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted(ids_1T).logits, plain_logits, atol=1e-3)
    for folder in (run / "adapter", run / "export" / "merged"):
        assert AutoTokenizer.from_pretrained(folder).chat_template
        assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n")
        assert json.loads((folder / "tunesmith.json").read_text())["template"]


def test_the_run_folder_holds_what_the_design_says(tmp_path: Path) -> None:
    run_all(tmp_path)
    found = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    expected = {"recipe.yaml", "environment.json", "metrics.jsonl", "data/fingerprints.json", "data/dropped.jsonl"}
    expected |= {f"reports/{stage}.{ending}" for stage in STAGES for ending in ("json", "html")}
    expected |= {f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "tunesmith.json")}
    expected |= {"checkpoints/step-00000006/manifest.json", "export/merged/model.safetensors"}
    assert expected <= found
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert str(tmp_path) not in json.dumps(config), "no path of this machine goes into a file that is shared"


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    recipe = load_recipe(tiny_recipe(tmp_path, model, adapter={"lora_dropout": 0.1}))
    digests = []
    for name in ("a", "b"):
        tunesmith.train(recipe, tmp_path / name)
        weights = tmp_path / name / "adapter" / "adapter_model.safetensors"
        digests.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_training_again_keeps_the_finished_adapter(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, tiny_model_folder(tmp_path / "model")))
    first = tunesmith.train(recipe, tmp_path / "run")
    weights = (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()
    second = tunesmith.train(recipe, tmp_path / "run")
    assert (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes() == weights
    assert second.figure("last_loss") == first.figure("last_loss")


def test_a_missed_target_stops_the_pipeline_before_export(tmp_path: Path) -> None:
    reports = run_all(tmp_path, evaluate={"max_new_tokens": 4, "targets": {"exact_match": 1.0}})
    assert [report.stage for report in reports] == STAGES[:3]
    assert [finding.code for finding in reports[-1].errors] == ["target-missed"]
    assert not (tmp_path / "run" / "export").exists()


def test_without_validation_and_test_set_the_run_goes_through(tmp_path: Path) -> None:
    reports = run_all(tmp_path, data={"validation": None, "test": None})
    assert [report.stage for report in reports] == ["check", "train", "export"]
    assert "no-validation" in [finding.code for finding in reports[1].findings]


def test_each_stage_runs_alone_from_the_run_folder(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, tiny_model_folder(tmp_path / "model")))
    run = tmp_path / "run"
    with pytest.raises(RunError, match="no such run"):
        tunesmith.evaluate(run)
    assert tunesmith.check(recipe, run).passed
    with pytest.raises(RunError, match="no adapter yet"):
        tunesmith.export(run)
    trained = tunesmith.train(recipe, run)
    assert 0 < float(str(trained.figure("trainable_share"))) < 100
    assert tunesmith.evaluate(run).figure("test_examples") == 5
    assert tunesmith.export(run).passed


def test_another_base_model_or_template_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, tiny_model_folder(tmp_path / "model")))
    tunesmith.train(recipe, tmp_path / "run")
    tiny_model_folder(
        tmp_path / "model", chat_template="{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(ContractError, match="chat template"):
        tunesmith.evaluate(tmp_path / "run")
    tiny_model_folder(tmp_path / "model", hidden_size=64)
    with pytest.raises(ContractError, match="base model"):
        tunesmith.export(tmp_path / "run")


def test_changed_data_do_not_go_on_in_the_same_run(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, tiny_model_folder(tmp_path / "model")))
    tunesmith.train(recipe, tmp_path / "run")
    write_orders(tmp_path / "train.jsonl", 24, first=40)
    with pytest.raises(RunError, match="training data"):
        tunesmith.train(recipe, tmp_path / "run")


def test_bf16_merges_within_its_bound(tmp_path: Path) -> None:
    reports = run_all(tmp_path, model={"precision": "bf16"})
    assert reports[-1].passed
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export" / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16


@pytest.mark.parametrize("init", ["pissa", "olora", "eva"])
def test_other_initialisations_end_in_a_plain_adapter_for_the_base(init: str, tmp_path: Path) -> None:
    reports = run_all(tmp_path, adapter={"init_lora_weights": init})
    assert reports[-1].passed, reports[-1].errors


def test_dora_and_chosen_layers_go_through(tmp_path: Path) -> None:
    reports = run_all(tmp_path, adapter={"use_dora": True, "layers": "last:1", "target_modules": "attention"})
    assert reports[-1].passed
    names = [row[0] for table in reports[1].tables for row in table.rows]
    assert "gate_proj" not in names


def test_plain_text_trains_and_has_nothing_to_answer(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {n} of a plain text." for n in range(12)), encoding="utf-8")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("Another text that was held out.\n\nAnd one more of them.", encoding="utf-8")
    recipe = load_recipe(tiny_recipe(tmp_path, model, data={"train": str(text), "validation": str(held_out)}))
    assert tunesmith.train(recipe, tmp_path / "run").passed
    no_test = load_recipe(recipe.model_dump(), [f"data.test={text}"])
    (tmp_path / "run" / "recipe.yaml").write_text(no_test.to_yaml(), encoding="utf-8")
    with pytest.raises(DataError, match="no conversation to answer"):
        tunesmith.evaluate(tmp_path / "run")


def test_rows_that_are_skipped_are_accounted_for(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    values = tiny_recipe(tmp_path, model, data={"on_bad_row": "skip"})
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "?"}]}\nnot json\n')
    report = tunesmith.check(load_recipe(values), tmp_path / "run")
    assert report.tables[0].rows[0] == ("train", 26, 24, 2, 0, 24)
    dropped = [json.loads(line) for line in (tmp_path / "run/data/dropped.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in dropped] == [(f"{tmp_path}/train.jsonl", n) for n in (25, 26)]
    assert "no assistant turn" in dropped[0]["reason"]


def test_a_preview_shows_what_is_trained(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, tiny_model_folder(tmp_path / "model")))
    previews = list(tunesmith.preview(recipe, 2))
    assert len(previews) == 2
    assert "".join(text for text, trained, _ in previews[0][1] if trained) == '{"tea": 1}<|im_end|>'

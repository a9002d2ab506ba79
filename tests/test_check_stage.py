"""The check stage alone: no torch, a data file in place of a recipe, nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith
from tests.orders import tiny_recipe, write_orders
from tests.tiny import tiny_model_folder
from tunesmith.cli import main
from tunesmith.recipe_file import load_recipe

NO_TORCH = """
import sys
from tunesmith.cli import main
code = main(sys.argv[1:])
heavy = [name for name in ("torch", "peft", "accelerate") if name in sys.modules]
sys.exit(f"imported: {heavy}" if heavy else code)
"""


def test_check_imports_no_torch(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny_recipe(tmp_path, model)), encoding="utf-8")
    command = [sys.executable, "-c", NO_TORCH, "check", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "Examples in train" in done.stdout


def test_a_data_file_is_checked_without_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    data = write_orders(tmp_path / "orders.jsonl", 8)
    test = write_orders(tmp_path / "test.jsonl", 2, first=100)
    edits = ["--set", f"model.name={model}", "--set", f"data.test={test}"]
    assert main(["check", data.name, *edits, "--json", "--write", "cleaned"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row[0]: row[1:] for row in report["tables"][0]["rows"]}
    assert rows == {"train": [8, 8, 0, 0, 8], "test": [2, 2, 0, 0, 2]}
    assert (tmp_path / "runs" / "check-orders" / "reports" / "check.json").is_file()
    assert len((tmp_path / "cleaned" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 8


def test_the_accounts_are_written_and_no_scratch_is_left(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    values = tiny_recipe(tmp_path, model, data={"on_bad_row": "skip"})
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("broken\n")
    left = tmp_path / "run" / "data" / "scratch-of-a-killed-process"
    left.mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text(load_recipe(values).to_yaml(), encoding="utf-8")
    tunesmith.check(load_recipe(values), tmp_path / "run")
    names = {path.name for path in (tmp_path / "run" / "data").iterdir()}
    assert names == {"dropped.jsonl", "flagged.jsonl", "fingerprints.json"}
    (dropped,) = (tmp_path / "run" / "data" / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(dropped) == {
        "split": "train",
        "file": str(tmp_path / "train.jsonl"),
        "line": 25,
        "action": "dropped",
        "rule": "bad-row",
        "reason": json.loads(dropped)["reason"],
        "before": "broken",
    }


def test_a_preview_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model_folder(tmp_path / "model")
    recipe = load_recipe(tiny_recipe(tmp_path, model))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    shown = list(tunesmith.preview(recipe, 2))
    assert [example.place.line for example, _ in shown] == [1, 2]
    assert any(piece.is_trained for _, pieces in shown for piece in pieces)
    assert not list(elsewhere.iterdir())

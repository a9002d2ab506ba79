"""The check stage alone: no torch, a data file in place of a recipe, nothing left behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith
from tests.orders import tiny_recipe, write_orders
from tests.tiny import tiny_model_folder
from tunesmith import check_stage
from tunesmith.cli import main
from tunesmith.errors import MissingPackageError, TunesmithError
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
    tunesmith.check(load_recipe(values), tmp_path / "run")
    (tmp_path / "run" / "data" / "scratch-of-a-killed-process").mkdir()
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


def test_a_check_that_fails_leaves_no_report_of_an_earlier_one(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    recipe = load_recipe(tiny_recipe(tmp_path, model))
    reports, data = tmp_path / "run" / "reports", tmp_path / "run" / "data"
    tunesmith.check(recipe, tmp_path / "run")
    assert {path.name for path in reports.iterdir()} == {"check.json", "check.html"}
    (tmp_path / "train.jsonl").write_text("broken\n", encoding="utf-8")
    with pytest.raises(TunesmithError, match="cannot be used"):
        tunesmith.check(recipe, tmp_path / "run")
    assert not list(reports.iterdir())
    assert not (data / "flagged.jsonl").exists()
    assert "broken" in (data / "dropped.jsonl").read_text(encoding="utf-8")


def test_files_of_one_name_have_a_run_folder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = ["--set", f"model.name={tiny_model_folder(tmp_path / 'model')}", "--json"]
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        write_orders(tmp_path / folder / "train.jsonl", 8)
        # Once more, and under another spelling of its path: the folder stays the same.
        for name in (f"{folder}/train.jsonl", f"{folder}/train.jsonl", str(tmp_path / folder / "train.jsonl")):
            assert main(["check", name, *edits]) == 0
            capsys.readouterr()
    first, second = sorted(path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert first.name == "check-train"
    assert re.fullmatch("check-train-[0-9a-f]{8}", second.name)
    assert "a/train.jsonl" in (first / "recipe.yaml").read_text(encoding="utf-8")
    assert "b/train.jsonl" in (second / "recipe.yaml").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system in which nothing can be made")
@pytest.mark.parametrize("option", ["--run", "--write"])
@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y", "/dev/null/x", "n" * 300])
def test_a_place_that_cannot_be_written_is_one_error_with_the_right_option(
    option: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_orders(tmp_path / "orders.jsonl", 8)
    model = tiny_model_folder(tmp_path / "model")
    assert main(["check", str(data), "--set", f"model.name={model}", option, place]) == 2
    message = capsys.readouterr().err.partition("tunesmith: error: ")[2]
    assert "cannot write: " in message
    assert [one for one in ("--run", "--write") if one in message] == [option]


def test_a_folder_that_may_not_be_replaced_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_orders(tmp_path / "orders.jsonl", 8)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    for place in ("mine", ".", "orders.jsonl"):
        assert main(["check", str(data), "--write", place]) == 2
        remedy = capsys.readouterr().err.partition("remedy: ")[2]
        assert "--write" in remedy
        assert "--run" not in remedy


MISSING = """
import sys
from tunesmith.cli import main
assert main(["check", "nosuch.jsonl"]) == 2
heavy = {"pydantic", "numpy", "transformers", "tokenizers", "yaml", "pyarrow", "rich"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_file_that_is_not_there_is_told_before_slow_imports(tmp_path: Path) -> None:
    (tmp_path / "such.jsonl").write_text("")
    done = subprocess.run([sys.executable, "-c", MISSING], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nosuch.jsonl: no such file" in done.stderr
    assert "did you mean 'such.jsonl'?" in done.stderr


def test_a_check_that_fails_leaves_the_records_of_a_trained_run(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    recipe = load_recipe(tiny_recipe(tmp_path, model))
    reports = tmp_path / "run" / "reports"
    tunesmith.check(recipe, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "train.jsonl").write_text("broken\n", encoding="utf-8")
    with pytest.raises(TunesmithError, match="cannot be used"):
        tunesmith.check(recipe, tmp_path / "run")
    assert {path.name for path in reports.iterdir()} == {"check.json", "check.html"}


def test_a_missing_tokeniser_of_the_evaluation_does_not_cost_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(*_: object, **__: object) -> None:
        raise MissingPackageError("MeCab", extra="ja", needed_for="BLEU of Japanese")

    monkeypatch.setattr(check_stage, "check_bleu", not_installed)
    recipe = load_recipe(tiny_recipe(tmp_path, tiny_model_folder(tmp_path / "model")))
    with pytest.raises(MissingPackageError):
        tunesmith.check(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "reports" / "check.json").is_file()


@pytest.mark.parametrize("name", ["~nosuchuser/x.jsonl", "x" * 300 + ".jsonl", "circle.jsonl"])
def test_a_name_that_is_none_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle.jsonl").symlink_to("circle.jsonl")
    assert main(["check", name]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_circle_of_links_is_no_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    recipe = load_recipe(tiny_recipe(tmp_path, tiny_model_folder(tmp_path / "model")))
    with pytest.raises(TunesmithError, match="circle"):
        tunesmith.check(recipe, tmp_path / "run", write_to=Path("circle"))

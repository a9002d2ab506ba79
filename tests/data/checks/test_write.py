"""`check --write`: the cleaned splits are what training would use, and checking them again finds nothing to do."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.tiny import tiny_model_folder
from tunesmith.config import Recipe
from tunesmith.errors import DataError
from tunesmith.recipe_file import load_recipe


def row(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}, ensure_ascii=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def recipe(folder: Path, model: Path, **data: Any) -> Recipe:
    train = [
        row("the first question", "an answer"),
        row("The first  QUESTION", "an answer"),
        row("mail to john.smith@mail-host.com", "done it"),
        row("asked in the test", "and answered"),
        "broken",
    ]
    (folder / "train.jsonl").write_text("\n".join(train) + "\n", encoding="utf-8")
    (folder / "test.jsonl").write_text(row("asked in the test", "and answered") + "\n", encoding="utf-8")
    paths = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    section = {**paths, "on_bad_row": "skip", "rules": {"email": "fix"}, **data}
    return load_recipe({"model": {"name": str(model)}, "data": section})


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_cleaned_splits_and_the_manifest_account_for_every_row(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "cleaned"
    checked = recipe(tmp_path, model)
    assert tunesmith.check(checked, tmp_path / "run", write_to=out).passed
    train = rows_of(out / "train.jsonl")
    assert [one["messages"][0]["content"].lower().split() for one in train] == [
        ["the", "first", "question"],
        ["mail", "to", "[email]"],
    ]
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    about = manifest["splits"]["train"]
    assert {key: about[key] for key in ("read", "kept", "dropped", "merged", "rows")} == {
        "read": 5,
        "kept": 2,
        "dropped": 2,
        "merged": 1,
        "rows": 2,
    }
    assert about["sha256"] == hashlib.sha256((out / "train.jsonl").read_bytes()).hexdigest()
    assert about["sources"] == [str(tmp_path / "train.jsonl")]
    assert manifest["rules"]["email"] == {"changed": {"train": 1}}
    assert manifest["recipe_digest"] == checked.digest()
    listed = {(one["line"], one["rule"]) for one in rows_of(out / "dropped.jsonl")}
    assert {(3, "email"), (4, "leakage"), (5, "bad-row")} < listed
    whole = rows_of(tmp_path / "run" / "data" / "dropped.jsonl")
    assert "john.smith" in json.dumps(whole)
    assert "john.smith" not in (out / "dropped.jsonl").read_text(encoding="utf-8")
    places = [[(one["line"], one["rule"]) for one in lines] for lines in (whole, rows_of(out / "dropped.jsonl"))]
    assert places[0] == places[1]


def test_checking_what_was_written_leaves_nothing_out(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "cleaned"
    tunesmith.check(recipe(tmp_path, model), tmp_path / "run", write_to=out)
    paths = {name: str(out / f"{name}.jsonl") for name in ("train", "test")}
    again = load_recipe({"model": {"name": str(model)}, "data": {**paths, "rules": {"email": "fix"}}})
    tunesmith.check(again, tmp_path / "again", write_to=tmp_path / "twice")
    assert not rows_of(tmp_path / "again" / "data" / "dropped.jsonl")
    for name in paths:
        assert (tmp_path / "twice" / f"{name}.jsonl").read_bytes() == (out / f"{name}.jsonl").read_bytes()


def test_a_folder_written_before_is_replaced_and_any_other_is_left_alone(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "cleaned"
    checked = recipe(tmp_path, model)
    tunesmith.check(checked, tmp_path / "run", write_to=out)
    (out / "train.jsonl").write_text("changed", encoding="utf-8")
    tunesmith.check(checked, tmp_path / "run", write_to=out)
    assert len(rows_of(out / "train.jsonl")) == 2
    (out / "thesis.txt").write_text("keep me", encoding="utf-8")
    web = tmp_path / "web"
    web.mkdir()
    (web / "manifest.json").write_text("{}", encoding="utf-8")
    for folder in (out, web):
        with pytest.raises(DataError, match="holds other files"):
            tunesmith.check(checked, tmp_path / "run", write_to=folder)
    (out / "thesis.txt").unlink()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me", encoding="utf-8")
    for folder, why in ((mine, "holds other files"), (mine / "notes.txt", "not a folder"), (tmp_path, "other files")):
        with pytest.raises(DataError, match=why):
            tunesmith.check(checked, tmp_path / "run", write_to=folder)
    assert (mine / "notes.txt").read_text(encoding="utf-8") == "keep me"
    own = load_recipe({"model": {"name": str(model)}, "data": {"train": str(out / "train.jsonl")}})
    with pytest.raises(DataError, match=r"data\.train is read from this folder"):
        tunesmith.check(own, tmp_path / "own", write_to=out)


def test_weights_are_written(tmp_path: Path, model: Path) -> None:
    lines = [row(f"question {n}", "yes") for n in range(30)] + [row(f"other {n}", "no") for n in range(5)]
    (tmp_path / "classes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = {"train": str(tmp_path / "classes.jsonl"), "balance": "weight"}
    weighed = load_recipe({"model": {"name": str(model)}, "data": data})
    tunesmith.check(weighed, tmp_path / "run", write_to=tmp_path / "w")
    written = rows_of(tmp_path / "w" / "train.jsonl")
    assert sum(one["weight"] for one in written) == pytest.approx(35, abs=1e-3)
    assert written[0]["weight"] == pytest.approx(written[-1]["weight"] / 2, abs=1e-5)


def test_repeated_rows_of_small_classes_are_written_as_often_as_they_are_used(tmp_path: Path, model: Path) -> None:
    lines = [row(f"question {n}", "yes") for n in range(30)] + [row(f"other {n}", "no") for n in range(5)]
    (tmp_path / "classes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = {"train": str(tmp_path / "classes.jsonl"), "balance": "upsample"}
    tunesmith.check(
        load_recipe({"model": {"name": str(model)}, "data": data}), tmp_path / "run", write_to=tmp_path / "w"
    )
    assert len(rows_of(tmp_path / "w" / "train.jsonl")) == 40

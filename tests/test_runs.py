"""The run folder: made, taken up, kept aside; nothing half-written."""

import json
from pathlib import Path

import pytest

from tunesmith.durable import write_text
from tunesmith.errors import DiskError, RunError
from tunesmith.recipe_file import load_recipe
from tunesmith.report import Report, Severity
from tunesmith.runs import Run

RECIPE = load_recipe({"model": {"name": "m"}, "data": {"train": "t.jsonl"}})


def test_a_new_run_records_recipe_and_environment(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RECIPE)
    assert Run.open(run.folder).recipe == RECIPE
    assert json.loads(run.environment_file.read_text())["packages"]["torch"]


def test_fresh_keeps_the_old_run_aside(tmp_path: Path) -> None:
    for number in range(3):
        run = Run.create(tmp_path / "run", RECIPE, fresh=True)
        run.append_metrics({"step": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert list(Run(tmp_path / "run.1").read_metrics()) == [{"step": 0}]
    assert list(Run(tmp_path / "run").read_metrics()) == [{"step": 2}]


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(RunError, match="not a run"):
            Run.create(tmp_path, RECIPE, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_a_killed_process_had_only_begun_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.new").write_text("mod")
    assert Run.create(tmp_path / "run", RECIPE).recipe == RECIPE


def test_a_trained_run_is_not_given_another_recipe(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RECIPE)
    (run.checkpoints_folder / "step-00000001").mkdir(parents=True)
    changed = load_recipe(RECIPE.model_dump(), ["train.learning_rate=0.5", "adapter.r=4"])
    with pytest.raises(
        RunError, match=r"adapter\.r: 16 -> 4[\s\S]*train\.learning_rate: 0\.0002 -> 0\.5[\s\S]*--fresh"
    ):
        Run.create(run.folder, changed)
    assert Run.open(run.folder).recipe == RECIPE
    allowed = load_recipe(RECIPE.model_dump(), ["train.num_train_epochs=9", "train.save_steps=7", "evaluate.samples=1"])
    assert Run.create(run.folder, allowed).recipe == allowed


def test_fewer_epochs_than_were_planned_are_a_change(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RECIPE)
    (run.checkpoints_folder / "step-00000001").mkdir(parents=True)
    with pytest.raises(RunError, match="num_train_epochs"):
        Run.create(run.folder, load_recipe(RECIPE.model_dump(), ["train.num_train_epochs=1"]))


def test_opening_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="no adapter yet"):
        Run.create(tmp_path / "run", RECIPE).trained_adapter()


def test_metrics_lose_a_torn_last_line_and_steps_that_will_come_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RECIPE)
    for step in (0, 10, 20):
        run.append_metrics({"step": step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3')
    assert [line["step"] for line in run.read_metrics()] == [0, 10, 20]
    run.keep_metrics(until_step=10)
    assert run.metrics_file.read_text() == '{"step": 0}\n{"step": 10}\n'


def test_a_report_is_saved_as_json_and_page_and_read_back(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RECIPE)
    report = Report("check", "Title")
    report.add_finding(Severity.WARNING, "some-code", "message")
    page = run.save_report(report)
    assert page.read_text(encoding="utf-8").startswith("<!")
    assert run.load_report("check") == report
    assert run.load_report("train") is None
    (run.folder / "reports" / "train.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        run.load_report("train")


def test_a_failed_write_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match=r"the disk is full[\s\S]*remedy"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_second_writer_is_refused_and_a_dead_one_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run")
    with run.one_writer(), pytest.raises(RunError, match=r"another process is at work on this run \(process \d+"):
        Run(tmp_path / "run").one_writer().__enter__()
    assert capsys.readouterr().err == ""
    note = tmp_path / ".run.lock.json"
    note.write_text('{"pid": 7, "host": "h", "since": "s", "memory_kills": -1}')
    with run.one_writer():
        assert run.killed_for_memory, "the counter has grown since"
    assert "process 7 on h, since s) did not finish: the system killed it for lack of memory" in capsys.readouterr().err
    assert not note.exists()

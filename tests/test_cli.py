"""The command: exit codes, one clear message for each thing a user can get wrong, a quick --help."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunesmith
from tests.orders import tiny_recipe, write_orders
from tests.tiny import tiny_model_folder
from tunesmith import cli

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # argparse
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe file over tiny data and a tiny model."""
    return write_recipe(tmp_path)


def write_recipe(folder: Path, **sections: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(folder, tiny_model_folder(folder / "model"), **sections)))
    return path


def test_run_goes_through_and_chat_answers(
    command: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = command("run", recipe, "--run", tmp_path / "run")
    assert code == 0
    assert all(word in out for word in ("check", "train", "evaluate", "export", "tunesmith chat"))
    monkeypatch.setattr(sys, "stdin", iter_with_isatty(["2 tea\n", "3 soap\n"]))
    code, out, _ = command("chat", tmp_path / "run", "--max-new-tokens", "3")
    assert code == 0
    assert out.count("\n") >= 2


def iter_with_isatty(lines: list[str]) -> Any:
    class Lines(list[str]):
        def isatty(self) -> bool:
            return False

    return Lines(lines)


def test_the_default_run_folder_is_named_after_the_recipe(
    command: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("check", recipe)[0] == 0
    assert (tmp_path / "runs/tiny/reports/check.html").is_file()


def test_json_is_all_there_is_on_standard_output(command: Command, recipe: Path, tmp_path: Path) -> None:
    code, out, _ = command("run", recipe, "--run", tmp_path / "run", "--json")
    assert code == 0
    assert [report["stage"] for report in json.loads(out)["reports"]] == ["check", "train", "evaluate", "export"]
    code, out, _ = command("evaluate", tmp_path / "run", "--json")
    assert json.loads(out)["passed"] is True


def test_a_failed_gate_is_exit_code_1(command: Command, recipe: Path, tmp_path: Path) -> None:
    code, out, _ = command("run", recipe, "--run", tmp_path / "run", "--set", "evaluate.targets.exact_match=1")
    assert code == 1
    assert "target-missed" in out


def test_show_prints_examples_with_trained_tokens_marked(command: Command, recipe: Path, tmp_path: Path) -> None:
    code, out, _ = command("check", recipe, "--show", "1", "--run", tmp_path / "run")
    assert code == 0
    assert '⟦{"tea": 1}<|im_end|>⟧' in out


def wrong_key(folder: Path) -> list[str]:
    return ["--set", "train.lerning_rate=1", "--set", "adapter.rank=4"]


def missing_file(folder: Path) -> list[str]:
    return ["--set", f"data.train={folder}/trian.jsonl"]


def empty_data(folder: Path) -> list[str]:
    (folder / "train.jsonl").write_text("")
    return []


def all_rows_bad(folder: Path) -> list[str]:
    (folder / "train.jsonl").write_text("{}\n[]\nnothing\n")
    return ["--set", "data.on_bad_row=skip"]


def one_row_bad(folder: Path) -> list[str]:
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"messages": 5}\n')
    return []


def no_assistant_turn(folder: Path) -> list[str]:
    (folder / "train.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    return []


def no_tokenizer(folder: Path) -> list[str]:
    for path in (folder / "model").glob("token*"):
        path.unlink()
    return []


def no_weights(folder: Path) -> list[str]:
    (folder / "model" / "model.safetensors").unlink()
    return []


def a_pickle(folder: Path) -> list[str]:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")
    return []


def unknown_model(folder: Path) -> list[str]:
    return ["--set", "model.name=smollm2-135"]


def no_such_target(folder: Path) -> list[str]:
    return ["--set", "adapter.target_modules=[q_porj]"]


def no_such_layer(folder: Path) -> list[str]:
    return ["--set", "adapter.layers=last:9"]


def too_long(folder: Path) -> list[str]:
    return ["--set", "data.max_length=100000"]


def nothing_left(folder: Path) -> list[str]:
    return ["--set", "data.max_length=8"]


def fp16_on_cpu(folder: Path) -> list[str]:
    return ["--set", "model.precision=fp16"]


def run_is_a_file(folder: Path) -> list[str]:
    (folder / "run").write_text("mine")
    return []


def missing_tracker(folder: Path) -> list[str]:
    return ["--set", "train.report_to=trackio"]


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (wrong_key, ["2 problems", "did you mean 'learning_rate'?", "adapter.rank: unknown key; did you mean 'r'?"]),
        (missing_file, ["trian.jsonl", "no such file", "train.jsonl"]),
        (empty_data, ["train.jsonl", "the file is empty"]),
        (all_rows_bad, ["data.train", "train.jsonl:1"]),
        (one_row_bad, ["train.jsonl:25", "on_bad_row: skip"]),
        (no_assistant_turn, ["train.jsonl:1", "no assistant turn"]),
        (no_tokenizer, ["tokenizer"]),
        (no_weights, ["model", "safetensors"]),
        (a_pickle, ["pytorch_model.bin", "pickle"]),
        (unknown_model, ["did you mean", "smollm2-135m"]),
        (no_such_target, ["q_porj", "q_proj"]),
        (no_such_layer, ["2"]),
        (too_long, ["context", "512"]),
        (nothing_left, ["data.max_length"]),
        (fp16_on_cpu, ["fp16", "bf16"]),
        (run_is_a_file, ["run"]),
        (missing_tracker, ["trackio", "pip install"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_wrong_input_is_one_clear_message_and_exit_code_2(
    spoil: Callable[[Path], list[str]], parts: list[str], command: Command, recipe: Path, tmp_path: Path
) -> None:
    code, _, err = command("train", recipe, "--run", tmp_path / "run", *spoil(tmp_path))
    assert code == 2
    message = err[err.index("tunesmith: error: ") :]
    for part in parts:
        assert part in message


def test_wrong_usage_is_exit_code_2(command: Command, tmp_path: Path) -> None:
    assert command()[0] == 2
    assert command("tarin")[0] == 2
    assert command("check", "x.yaml", "--show", "-1")[0] == 2
    code, _, err = command("train", tmp_path / "none.yaml")
    assert code == 2
    assert "no such file" in err
    assert command("evaluate", tmp_path / "none")[0] == 2


@pytest.mark.skipif(
    shutil.which("mount") is None or os.name != "posix" or os.geteuid() != 0, reason="needs to mount a file system"
)
def test_a_full_disk_is_told_and_nothing_is_lost(command: Command, recipe: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        code, _, err = command("train", recipe, "--run", small / "run")
        assert code == 2
        assert "the disk is full" in err
        assert "--run" in err
        assert not list((small / "run").rglob("*.new*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_help_starts_without_heavy_imports() -> None:
    code = (
        "import sys; from tunesmith import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'pydantic', 'pyarrow', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "check" in done.stdout


def test_a_signal_stops_with_75_and_the_same_command_resumes(recipe: Path, tmp_path: Path) -> None:
    write_orders(tmp_path / "train.jsonl", 60)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    arguments = [
        "train",
        str(recipe),
        "--run",
        str(tmp_path / "run"),
        "--set",
        "train.max_steps=2000",
        "--set",
        "train.logging_steps=1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith.cli", *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 6):
        pass
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "the same command goes on" in err
    stopped_at = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1].name
    assert stopped_at != "step-00002000"


def test_a_reader_that_goes_away_does_not_stop_the_stages(recipe: Path, tmp_path: Path) -> None:
    run = f"{sys.executable} -m tunesmith.cli run {recipe} --run {tmp_path / 'run'} --set evaluate.limit=2"
    done = subprocess.run(
        ["bash", "-c", f"{run} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "export" / "merged" / "model.safetensors").is_file()


def test_check_of_other_settings_leaves_a_trained_run_alone(command: Command, recipe: Path, tmp_path: Path) -> None:
    assert command("train", recipe, "--run", tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    code, out, _ = command("check", recipe, "--run", tmp_path / "run", "--set", "train.learning_rate=0.5")
    assert (code, "check" in out) == (0, True)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before
    code, _, err = command("check", recipe, "--run", tmp_path / "run", "--set", f"data.train={tmp_path}/nope.jsonl")
    assert code == 2
    assert "no such file" in err


def test_the_public_names_are_these() -> None:
    assert sorted(tunesmith.__all__) == [
        "Answer",
        "Chat",
        "Engine",
        "Event",
        "Figure",
        "Finding",
        "Recipe",
        "Report",
        "Run",
        "Sample",
        "SamplingParameters",
        "Series",
        "Severity",
        "Table",
        "TunesmithError",
        "__version__",
        "check",
        "doctor",
        "evaluate",
        "export",
        "load_recipe",
        "preview",
        "run",
        "train",
    ]
    for name in tunesmith.__all__:
        assert getattr(tunesmith, name) is not None
    for name in ("check", "train", "evaluate", "export", "run", "doctor", "preview", "load_recipe"):
        assert callable(getattr(tunesmith, name)), name
    modules = {path.stem for path in Path(str(tunesmith.__file__)).parent.iterdir()}
    assert not modules & set(tunesmith.__all__), "importing a module of that name would hide the function"
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        tunesmith.tarin  # noqa: B018 (the access is the test)

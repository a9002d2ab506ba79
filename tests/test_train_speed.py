"""The benchmark of training speed: its figures and verdicts, its examples, and the table that the READMEs get of it."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks.train_speed.configurations import PARTS, configurations
from benchmarks.train_speed.examples import DEMO, first_rows, grouped, tokenize, write_tokens
from benchmarks.train_speed.figures import quartiles, summarize, verdicts
from benchmarks.train_speed.peers import RUNNERS, Job
from benchmarks.train_speed.processes import FailedError, run_process
from benchmarks.train_speed.report import COLUMNS, build_report, cells
from scripts.readme_figures import train_picture, train_table

from tests.tiny import tiny_model_folder
from tunesmith.data.batching import StepPlan
from tunesmith.data.records import Place, TokenizedExample
from tunesmith.report.html import render_html


def result(part: str, tool: str, rate: float, **more: Any) -> dict[str, Any]:
    """A measured run with `rate` as its median."""
    return {
        "part": part,
        "tool": tool,
        "name": f"{tool} at {rate:g}",
        "batch": 4,
        "x": 4,
        "precision": "fp32",
        "settings": {},
        "tokens_per_second": [rate] * 6,
        "median_tokens_per_second": rate,
        "quartiles": [rate - 1, rate + 1],
        "all_tokens_per_second": rate,
        "steady_steps": 5,
        "peak_bytes": 3e9,
        "baseline_bytes": 4e8,
        "first_loss": 2.0,
        "last_loss": 1.0,
        **more,
    }


def met(results: list[dict[str, Any]]) -> list[bool | None]:
    return [verdict.is_met for verdict in verdicts(results)]


def test_quartiles_are_those_of_linear_interpolation() -> None:
    assert quartiles([4, 1, 3, 2, 5]) == (2, 3, 4)
    assert quartiles([1, 2]) == (1.25, 1.5, 1.75)
    assert quartiles([7]) == (7, 7, 7)
    with pytest.raises(ValueError, match="no values"):
        quartiles([])


def test_warm_steps_do_not_count_but_in_the_speed_over_all() -> None:
    raw = {"tokens_per_second": [1, 1, 10, 20, 30], "losses": [3, 2, 2, 1, 1], "all_tokens": 50, "all_seconds": 10}
    figures = summarize(raw, warm=2)
    assert (figures["median_tokens_per_second"], figures["quartiles"], figures["steady_steps"]) == (20, [15, 25], 3)
    assert (figures["all_tokens_per_second"], figures["first_loss"], figures["last_loss"]) == (5, 3, 1)


def test_each_tools_best_run_counts() -> None:
    peers = [result("speed", "trl", 100), result("speed", "trl", 90), result("speed", "article", 40)]
    ours = [result("speed", "tunesmith", 300), result("speed", "tunesmith", 400, peak_bytes=1e9)]
    assert met([*peers, *ours]) == [True, True, True]
    assert met([*peers, result("speed", "trl", 101), *ours]) == [False, True, True]
    assert met([*peers, result("speed", "article", 41), *ours]) == [True, False, True]
    # Another precision of the article's recipe is shown, and is not the bar.
    assert met([*peers, result("speed", "article", 90, precision="bf16"), *ours]) == [True, True, True]


def test_memory_is_judged_by_the_worst_batch_and_the_most_frugal_peer() -> None:
    rows = [
        result("speed", tool, 10, batch=batch, peak_bytes=peak)
        for tool, batch, peak in (("trl", 4, 3e9), ("tunesmith", 4, 1e9), ("trl", 8, 6e9), ("tunesmith", 8, 2.1e9))
    ]
    memory = verdicts(rows)[2]
    assert memory.is_met is False
    assert memory.figure == pytest.approx(0.35)
    frugal = [result("speed", "trl", 5, batch=4, peak_bytes=2e9), result("speed", "trl", 5, batch=8, peak_bytes=9e9)]
    assert verdicts([*rows, *frugal])[2].figure == pytest.approx(0.5)
    packed = result("speed", "trl", 5, batch=4, peak_bytes=1e8, settings={"packed": 1024})
    assert verdicts([*rows, packed])[2].figure == pytest.approx(0.35)


@pytest.mark.parametrize(("part", "least"), [("last2", 6), ("last2-1b", 10)])
def test_top_layers_have_a_bar_for_each_model(part: str, least: int) -> None:
    assert met([result(part, "peft", 10), result(part, "tunesmith", 10 * least)]) == [True]
    assert met([result(part, "peft", 10), result(part, "tunesmith", 10 * least - 1)]) == [False]


@pytest.mark.parametrize("part", ["examples", "budgets"])
def test_flat_means_that_no_token_costs_a_tenth_more_than_the_cheapest(part: str) -> None:
    assert met([result(part, "tunesmith", rate) for rate in (100, 109, 104)]) == [True]
    assert met([result(part, "tunesmith", rate) for rate in (100, 111, 104)]) == [False]


def test_without_a_run_there_is_no_verdict() -> None:
    failed = {
        "part": "speed",
        "tool": "trl",
        "name": "a",
        "batch": 4,
        "settings": {},
        "precision": "fp32",
        "failed": "no",
    }
    assert met([failed, result("speed", "tunesmith", 9), result("speed", "article", 1)]) == [None, False, None]
    assert met([result("budgets", "tunesmith", 9), {**failed, "part": "budgets"}]) == [None]
    assert (cells(failed)[3], cells(failed)[-1], len(cells(failed))) == ("failed", "no", len(COLUMNS))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_full_run_has_five_steady_steps_and_enough_examples_everywhere(precision: str) -> None:
    rows = configurations(precision, PARTS, quick=False)
    assert {one.part for one in rows} == set(PARTS)
    assert all(one.steady >= 5 and one.warm >= 2 for one in rows)
    for one in rows:
        assert re.fullmatch(r"[\w-]+", one.key)
        if one.part.startswith("last2"):  # the first epoch and no more is left out
            assert one.warm * one.batch == one.examples
        elif "packed" not in one.settings:
            assert one.examples >= (one.warm + one.steady) * one.batch
    assert len(configurations(precision, PARTS, quick=True)) < len(rows)


def test_peers_get_the_batches_that_the_training_makes() -> None:
    lengths = [5, 9, 2, 7, 3, 8, 1, 4]
    rows = [TokenizedExample((0,) * length, (0,) * length, Place("row", length)) for length in lengths]
    peers = grouped(rows, 4)
    plan = StepPlan(lengths, micro_batch_size=4, micro_batches=1, strategy="group_by_length", seed=0)
    ours = {frozenset(lengths[index] for index in plan.step(step)[0]) for step in range(2)}
    assert {frozenset(len(one.input_ids) for one in peers[at : at + 4]) for at in (0, 4)} == ours


def test_rows_used_again_differ() -> None:
    rows = first_rows(1_500, DEMO)
    assert len(rows) == len(set(rows)) == 1_500
    assert rows[:600] == first_rows(600, DEMO)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two steps of two examples on a tiny model."""
    folder = tmp_path_factory.mktemp("peer")
    model = tiny_model_folder(folder / "model")
    write_tokens(tokenize(first_rows(4, DEMO), model), folder / "tokens.jsonl")
    files = {"model_folder": str(model), "tokens": str(folder / "tokens.jsonl"), "output": str(folder / "result.json")}
    return Job(tool="", batch=2, steps=2, precision="fp32", settings={"last": 1, "autocast": False}, **files)


@pytest.mark.parametrize("tool", ["article", "peft", "trl"])
@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_a_peer_counts_real_tokens_and_its_loss(tool: str, job: Job) -> None:
    if tool == "trl":
        pytest.importorskip("trl", reason="the peers come with the extra bench")
    steps = RUNNERS[tool](replace(job, tool=tool))
    lengths = [len(line.split("labels")[0].split(",")) - 1 for line in Path(job.tokens).read_text().splitlines()]
    if tool == "article":
        lengths = [min(length, 512) for length in lengths]
    assert sum(steps.tokens) == sum(lengths)
    assert len(steps.tokens) == len(steps.seconds) == len(steps.losses) == 2
    assert all(4 < loss < 7 for loss in steps.losses), "a random model over some 256 bytes is near ln 256"


def test_a_process_tells_its_own_peak_or_why_it_failed(tmp_path: Path) -> None:
    size = 300 * 2**20
    usage = run_process([sys.executable, "-c", f"bytearray(b'1') * {size}"], tmp_path / "log.txt")
    assert usage.peak_bytes > size
    assert usage.cpu_seconds > 0
    with pytest.raises(FailedError, match="exit code 1: no memory for it"):
        run_process([sys.executable, "-c", "raise SystemExit('no memory for it')"], tmp_path / "log.txt")


def outcome(results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    machine = {"device": "CPU, 2 cores", "torch": "2", "transformers": "5", "peft": "0", "trl": "1"}
    return {"machine": machine, "precision": "fp32", "quick": False, "data": "d", "results": results, **more}


def test_the_page_and_the_readmes_show_every_tools_best_run_and_the_machine() -> None:
    failed = {**result("speed", "trl", 0), "name": "packed", "failed": "<no memory>"}
    rows = [
        result("speed", tool, rate) for tool, rate in (("article", 10), ("trl", 30), ("trl", 20), ("tunesmith", 90))
    ]
    rows += [failed, result("budgets", "tunesmith", 70, x=1024)]
    page = render_html(build_report(outcome(rows), verdicts(rows)))
    assert "&lt;no memory&gt;" in page
    assert "not met" in page
    table = train_table(outcome(rows), "en")
    assert "| TRL SFTTrainer | trl at 30 | 30 | 29–31 | 3.0 |" in table
    assert "trl at 20" not in table
    assert "CPU, 2 cores" in table
    smoke = train_table(outcome(rows, quick=True), "en")
    assert "smoke run" in smoke
    assert "|" not in smoke
    picture = train_picture(outcome(rows))
    bars = {float(width) for width in re.findall(r'<rect [^>]* width="([0-9.]+)"', picture)}
    assert max(bars) == 420, "the fastest takes the whole width"
    assert "30 tokens/s" in picture
    assert ElementTree.fromstring(picture).tag.endswith("svg")

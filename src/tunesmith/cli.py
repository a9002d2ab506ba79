"""The `tunesmith` command: one subcommand a stage. Load, call, print the report, exit.

Exit codes: 0 done, 1 a gate failed, 2 wrong usage, recipe or data, 75 stopped but resumable.
Heavy imports happen inside the subcommands, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tunesmith._version import __version__
from tunesmith.errors import EXIT_DONE, EXIT_GATE_FAILED, TunesmithError

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.report import Report

CHECKED_FOR = "smollm2-135m"
"""The model whose tokenizer checks a data file given without a recipe."""

DATA_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")
"""A file that ends so is data, not a recipe."""

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

DESCRIPTION = "From a base language model and your examples to a verified, merged LoRA adapter, each step proved."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    _use_utf8()
    try:
        return int(options.command(options))
    except TunesmithError as error:
        print(f"tunesmith: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tunesmith: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _stop_printing()
        return EXIT_BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunesmith", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"tunesmith {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("recipe", metavar="RECIPE", type=Path, help="a YAML recipe")
    recipe.add_argument("--set", dest="edits", metavar="A.B=C", action="append", default=[], help="edit the recipe")
    recipe.add_argument("--run", metavar="FOLDER", type=Path, help="the run folder (default: runs/<recipe name>)")
    fresh = argparse.ArgumentParser(add_help=False)
    fresh.add_argument("--fresh", action="store_true", help="start anew; a run that is there is kept aside")
    run_folder = argparse.ArgumentParser(add_help=False)
    run_folder.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="the report as JSON on standard output")

    add = commands.add_parser
    command = add("run", parents=[recipe, fresh, output], help="check, train, evaluate and export, with gates between")
    command.set_defaults(command=_run)
    command = add("check", parents=[recipe, output], help="audit the data before a model is loaded")
    command.description = (
        "Audits the data that a recipe names. RECIPE may also be a data file, which is checked as training data for "
        f"{CHECKED_FOR}; --set model.name=... takes another model's tokenizer, --set data.test=... adds a test set."
    )
    command.add_argument(
        "--write",
        metavar="FOLDER",
        type=Path,
        help="write the cleaned splits, a manifest and the lists of rows left out to FOLDER",
    )
    command.add_argument(
        "--show", metavar="N", type=_count, default=0, help="print N examples, trained tokens coloured"
    )
    command.set_defaults(command=_check)
    command = add("train", parents=[recipe, fresh, output], help="train; the same command again resumes")
    command.set_defaults(command=_train)
    command = add("evaluate", parents=[run_folder, output], help="score base and tuned model on the test set")
    command.set_defaults(command=_evaluate)
    command = add("export", parents=[run_folder, output], help="merge, and prove that the merged model answers alike")
    command.set_defaults(command=_export)
    command = add("chat", parents=[run_folder], help="talk to a trained run")
    command.add_argument("--base", action="store_true", help="talk to the base model instead, to compare")
    command.add_argument("--system", metavar="TEXT", help="a system message (default: the recipe's)")
    command.add_argument(
        "--max-new-tokens", metavar="N", type=_count, default=512, help="longest answer (default: 512)"
    )
    command.add_argument(
        "--temperature", metavar="T", type=_temperature, default=0.0, help="0 takes the likeliest token"
    )
    command.set_defaults(command=_chat)
    command = add("doctor", parents=[output], help="what this machine can do")
    command.set_defaults(command=_doctor)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


def _temperature(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 100")
    return number


def _run(options: argparse.Namespace) -> int:
    pipeline = _import("tunesmith.pipeline")
    recipe, folder = _recipe_and_folder(options)
    reports = pipeline.run(
        recipe, folder, fresh=options.fresh, on_report=None if options.json else lambda report: _show(report, folder)
    )
    if options.json:
        reports_json = [json.loads(report.to_json()) for report in reports]
        print(json.dumps({"reports": reports_json}, ensure_ascii=False, indent=2))
    elif all(report.passed for report in reports):
        print(f"\nDone. Talk to it: tunesmith chat {folder}")
    return _exit_code(reports)


def _check(options: argparse.Namespace) -> int:
    if options.show and (options.write is not None or options.json):
        from tunesmith.errors import RecipeError

        raise RecipeError(["--show only prints examples; leave --write and --json out"])
    recipe, folder = _recipe_and_folder(options)
    check_stage = _import("tunesmith.check_stage")
    if options.show:
        from tunesmith.report.preview import print_example

        for example, pieces in check_stage.preview(recipe, options.show):
            print_example(str(example.place), pieces)
        return EXIT_DONE
    report = check_stage.check(recipe, folder, write_to=options.write)
    written = all(finding.code != "not-written" for finding in report.findings)
    code = _finish(report, folder if written else None, options)
    if options.write is not None and not options.json:
        print(f"Cleaned splits: {options.write}")
    return code


def _train(options: argparse.Namespace) -> int:
    pipeline = _import("tunesmith.pipeline")
    recipe, folder = _recipe_and_folder(options)
    on_report = None if options.json else lambda report: _show(report, folder)
    report = pipeline.train(recipe, folder, fresh=options.fresh, on_report=on_report)
    if options.json:
        print(report.to_json(), end="")
    return _exit_code([report])


def _evaluate(options: argparse.Namespace) -> int:
    pipeline = _import("tunesmith.pipeline")
    return _finish(pipeline.evaluate(options.run), options.run, options)


def _export(options: argparse.Namespace) -> int:
    pipeline = _import("tunesmith.pipeline")
    return _finish(pipeline.export(options.run), options.run, options)


def _chat(options: argparse.Namespace) -> int:
    from tunesmith.chat import Chat, prompted_lines, talk

    chat = Chat(options.run, base=options.base, system=options.system)
    interactive = sys.stdin.isatty()
    lines = prompted_lines() if interactive else sys.stdin
    talk(
        chat,
        lines,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        interactive=interactive,
    )
    return EXIT_DONE


def _doctor(options: argparse.Namespace) -> int:
    from tunesmith.machine import doctor

    return _finish(doctor(), None, options)


def _import(module: str) -> ModuleType:
    """torch and transformers take seconds to import: that is said, like all that takes long."""
    from tunesmith.progress import task

    with task("Starting"):
        return import_module(module)


def _recipe_and_folder(options: argparse.Namespace) -> tuple[Recipe, Path]:
    if _is_data(options) and options.recipe.suffix.lower() in DATA_ENDINGS:
        from tunesmith.data.file_kinds import no_such_file

        with suppress(OSError, RuntimeError):  # a name that is none, or a folder closed to us: told by who opens it
            place = options.recipe.expanduser()
            if not place.exists():  # told before what is slow to import
                raise no_such_file(place, str(options.recipe))
    from tunesmith.recipe_file import load_recipe

    if _is_data(options):
        values = {"model": {"name": CHECKED_FOR}, "data": {"train": str(options.recipe)}}
        return load_recipe(values, options.edits), options.run or _folder_of_data(options.recipe)
    recipe = load_recipe(options.recipe, options.edits)
    return recipe, options.run or Path("runs") / options.recipe.stem


def _is_data(options: argparse.Namespace) -> bool:
    """Whether a data file is given to `check` in place of a recipe; "x.jsonl.gz" is one too, to be told what to do."""
    endings = [ending.lower() for ending in options.recipe.suffixes[-2:]]
    return options.command is _check and any(ending in DATA_ENDINGS for ending in endings)


def _folder_of_data(data: Path) -> Path:
    """The run folder of a data file: runs/check-STEM; with a digest of its path where that is another file's."""
    from tunesmith.runs import Run

    folder = Path("runs") / f"check-{data.stem}"
    run = Run(folder)
    try:
        if not run.recipe_file.exists():
            return folder
        sources = run.recipe.data.train
    except (TunesmithError, OSError):  # edited by hand, and not to be lost; or a name that no folder can have
        sources = []
    place = _real_path(data)
    if any(isinstance(one, str) and _real_path(Path(one)) == place for one in sources):
        return folder
    return folder.with_name(f"{folder.name}-{sha256(place.encode()).hexdigest()[:8]}")


def _real_path(path: Path) -> str:
    return os.path.realpath(os.path.expanduser(path))  # noqa: PTH111  # raises for no name, as pathlib's do for some


def _finish(report: Report, folder: Path | None, options: argparse.Namespace) -> int:
    if options.json:
        print(report.to_json(), end="")
    else:
        _show(report, folder)
    return _exit_code([report])


def _show(report: Report, folder: Path | None) -> None:
    from tunesmith.report.terminal import print_report

    try:
        print_report(report)
        if folder is not None:
            print(f"Full report: {folder / 'reports' / report.stage}.html", flush=True)
    except BrokenPipeError:  # The reader, such as `head`, has enough; the stages go on.
        _stop_printing()


def _stop_printing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(reports: Sequence[Report]) -> int:
    return EXIT_DONE if all(report.passed for report in reports) else EXIT_GATE_FAILED


def _use_utf8() -> None:
    """Messages hold any language; a terminal set to another encoding shows what it can instead of failing."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())

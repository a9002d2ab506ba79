"""Tunesmith: from a base language model and your examples to a verified, merged LoRA adapter.

    from pathlib import Path
    import tunesmith

    recipe = tunesmith.load_recipe("recipes/demo.yaml", ["train.num_train_epochs=1"])
    for report in tunesmith.run(recipe, Path("runs/demo")):
        print(report.stage, report.passed)

Each subcommand of the `tunesmith` command is one function here. Names are imported when they are first used, so that
`import tunesmith` is quick.
"""

from typing import TYPE_CHECKING, Any

from tunesmith._version import __version__

if TYPE_CHECKING:
    from tunesmith.chat import Chat
    from tunesmith.check_stage import check, preview
    from tunesmith.config import Recipe
    from tunesmith.errors import TunesmithError
    from tunesmith.machine import doctor
    from tunesmith.pipeline import evaluate, export, run, train
    from tunesmith.recipe_file import load_recipe
    from tunesmith.report import Figure, Finding, Report, Sample, Series, Severity, Table
    from tunesmith.runs import Run
    from tunesmith.serving.engine import Engine
    from tunesmith.serving.request import Answer, Event, SamplingParameters

__all__ = [
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

_MODULES = {
    "tunesmith.chat": ("Chat",),
    "tunesmith.check_stage": ("check", "preview"),
    "tunesmith.config": ("Recipe",),
    "tunesmith.machine": ("doctor",),
    "tunesmith.errors": ("TunesmithError",),
    "tunesmith.pipeline": ("evaluate", "export", "run", "train"),
    "tunesmith.recipe_file": ("load_recipe",),
    "tunesmith.report": ("Figure", "Finding", "Report", "Sample", "Series", "Severity", "Table"),
    "tunesmith.runs": ("Run",),
    "tunesmith.serving.engine": ("Engine",),
    "tunesmith.serving.request": ("Answer", "Event", "SamplingParameters"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tunesmith' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""The whole recipe, as YAML and as a digest."""

from __future__ import annotations

import hashlib
import json
import re

import yaml
from pydantic import Field, model_validator

from tunesmith.config.adapter_section import AdapterSection
from tunesmith.config.data_section import DataSection
from tunesmith.config.evaluate_section import EvaluateSection, Targets
from tunesmith.config.export_section import ExportSection
from tunesmith.config.model_section import ModelSection
from tunesmith.config.section import Section
from tunesmith.config.train_section import TrainSection

FLOAT_WITHOUT_DOT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
"""Numbers such as 3e-4, which YAML 1.1 takes for text; users and other tools write learning rates so."""


class _RecipeDumper(yaml.SafeDumper):
    """Quotes text that the recipe's reader would take for a number."""


_RecipeDumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_WITHOUT_DOT, list("-+0123456789"))


class Recipe(Section):
    """One run, whole."""

    model: ModelSection
    data: DataSection
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    export: ExportSection = Field(default_factory=ExportSection)

    @model_validator(mode="after")
    def _nothing_that_does_nothing(self) -> Recipe:
        problems = []
        if self.data.validation is None:
            problems += [
                f"train.{key} needs data.validation"
                for key in ("eval_steps", "early_stopping_patience")
                if getattr(self.train, key) is not None
            ]
        if self.data.test is None and self.evaluate.targets != Targets():
            problems.append("evaluate.targets needs data.test")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def to_yaml(self) -> str:
        """The recipe with every default written out, as YAML that `load_recipe` reads back."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        """SHA-256 of the recipe's values, in hex; equal for recipes that say the same in other words."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

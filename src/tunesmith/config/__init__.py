"""The recipe: one typed description of a run; `recipe_file` reads it from YAML.

Keys use the names of PEFT's `LoraConfig` and of `transformers.TrainingArguments` where those have one. No torch is
imported here.
"""

from tunesmith.config.adapter_section import AdapterSection
from tunesmith.config.data_section import ColumnMapping, DataFormat, DataRules, DataSection, HubDataset
from tunesmith.config.evaluate_section import EvaluateSection, Targets
from tunesmith.config.export_section import ExportSection
from tunesmith.config.model_section import ModelSection
from tunesmith.config.recipe import FLOAT_WITHOUT_DOT, Recipe
from tunesmith.config.section import Section
from tunesmith.config.train_section import TrainSection

__all__ = [
    "FLOAT_WITHOUT_DOT",
    "AdapterSection",
    "ColumnMapping",
    "DataFormat",
    "DataRules",
    "DataSection",
    "EvaluateSection",
    "ExportSection",
    "HubDataset",
    "ModelSection",
    "Recipe",
    "Section",
    "Targets",
    "TrainSection",
]

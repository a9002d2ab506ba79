"""Reading a recipe: the YAML file, `--set a.b=c` edits of the plain mapping, then one validation.

So there is one path for errors, and every problem of the file and of the edits is shown together.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tunesmith.config import FLOAT_WITHOUT_DOT, Recipe
from tunesmith.errors import RecipeError

ALIASES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "lr_scheduler": "lr_scheduler_type",
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "lora_target": "target_modules",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "max_seq_length": "max_length",
    "model_name_or_path": "name",
    "base_model": "name",
}
"""What other tools call a key; for the hint only."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML silently takes the last, and reads 3e-4 as a number."""


def _mapping_without_doubles(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (str, int, float, bool)) and key in seen:
            raise yaml.MarkedYAMLError(problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark)
        if isinstance(key, (str, int, float, bool)):
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_doubles)
_UniqueKeyLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_WITHOUT_DOT, list("-+0123456789"))


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        source: a YAML file, or the mapping itself.
        overrides: edits as "train.learning_rate=1e-4"; the value is read as YAML.

    Raises:
        RecipeError: with every problem found: unreadable file, unknown keys with the nearest known one, wrong values.
    """
    place = None if isinstance(source, Mapping) else str(source)
    values = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else _read_yaml(Path(source))
    problems = [problem for edit in overrides if (problem := _apply(values, edit))]
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(problems + _explain(error), place=place) from None
    if problems:
        raise RecipeError(problems, place=place)
    return recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    place = str(path)
    try:
        # A subclass of SafeLoader: no tag makes objects.
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise RecipeError(["there is no such file"], place=place, remedy=_near_recipes(path)) from None
    except IsADirectoryError:
        raise RecipeError(["this is a folder, not a recipe"], place=place) from None
    except OSError as error:
        raise RecipeError([f"cannot be read: {error.strerror}"], place=place) from None
    except UnicodeDecodeError as error:
        raise RecipeError([f"is not UTF-8 text (byte {error.start})"], place=place) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError([f"is not valid YAML: {_one_line(error)}"], place=place) from None
    if not isinstance(values, dict):
        raise RecipeError(["holds no mapping; expected sections model, data, train, ..."], place=place)
    return values


def _near_recipes(path: Path) -> str | None:
    if not path.parent.is_dir():
        return None
    names = sorted(str(p) for p in path.parent.glob("*.y*ml"))
    return f"recipes here: {', '.join(names)}" if names else None


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + (getattr(error, "problem", None) or str(error) or type(error).__name__).replace("\n", " ")


def _apply(values: dict[str, Any], edit: str) -> str | None:
    """Edits `values` in place; returns the problem, if there is one."""
    key, equals, text = edit.partition("=")
    if not equals or not key.strip():
        return f"--set {edit}: write it as section.key=value"
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"--set {edit}: the value is not valid YAML: {_one_line(error)}"
    *parents, last = key.strip().split(".")
    at: Any = values
    for name in parents:
        if at.get(name) is None:
            at[name] = {}
        at = at[name]
        if not isinstance(at, dict):
            return f"--set {edit}: '{name}' is not a section"
    at[last] = value
    return None


def _explain(error: ValidationError) -> list[str]:
    """One line for each key that has a problem, unknown keys with the nearest known one."""
    lines: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_input=True):
        names, known = _walk(item["loc"])
        messages = lines.setdefault(".".join(names), [])
        if item["type"] == "extra_forbidden":
            alias = [ALIASES[names[-1]]] if ALIASES.get(names[-1]) in known else []
            near = alias or difflib.get_close_matches(names[-1], known, n=1, cutoff=0.5)
            messages.append("unknown key; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"))
        elif item["type"] == "missing":
            messages.append("missing")
        else:
            message = item["msg"].removeprefix("Value error, ").replace("input should", "should")
            message = message.replace("Input should", "should")
            messages.append(message[:1].lower() + message[1:] + _given(item.get("input")))
    # A value that fits no member of a union has one problem for each member: any of them would do.
    return [f"{key}: {_joined(messages)}" if key else _joined(messages) for key, messages in lines.items()]


def _given(value: object) -> str:
    return f" (given: {value!r})" if isinstance(value, (str, int, float, bool, type(None))) else ""


def _joined(messages: list[str]) -> str:
    ending = messages[-1].rpartition(" (given: ")
    if len(messages) > 1 and ending[1]:
        given = ending[1] + ending[2]
        return ", or ".join(dict.fromkeys(m.removesuffix(given) for m in messages)) + given
    return ", or ".join(dict.fromkeys(messages))


def _walk(location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The recipe keys of a pydantic location, without its marks for members of a union; the last one's siblings."""
    names: list[str] = []
    siblings = list(Recipe.model_fields)
    section: type[BaseModel] | None = Recipe
    for part in location:
        if isinstance(part, int):
            names.append(str(part))
            continue
        if section is not None and part in section.model_fields:
            siblings = list(section.model_fields)
            names.append(part)
            section = _section_of(section.model_fields[part].annotation)
        elif part == location[-1] and section is not None and part != section.__name__:
            siblings = list(section.model_fields)
            names.append(part)
    return names, siblings


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is not None:
        for inner in get_args(annotation):
            if (found := _section_of(inner)) is not None:
                return found
    return None

"""The recipe: defaults, edits, and every problem at once with the nearest known key."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config import Recipe
from tunesmith.errors import RecipeError
from tunesmith.recipe_file import load_recipe

MINIMAL: dict[str, Any] = {"model": {"name": "smollm2-135m"}, "data": {"train": "train.jsonl"}}


def problems_of(values: dict[str, Any], *edits: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(values, edits)
    return caught.value.problems


def test_the_defaults_are_a_whole_recipe_and_survive_a_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe(MINIMAL)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert recipe.data.train == ["train.jsonl"]
    assert recipe.adapter.target_modules == "all-linear"


def test_edits_are_read_as_yaml_and_do_not_change_the_mapping_given() -> None:
    recipe = load_recipe(
        MINIMAL, ["train.learning_rate=3e-4", "adapter.layers=[0, 2]", "data.test=a.jsonl", "evaluate.targets.bleu=0.3"]
    )
    assert recipe.train.learning_rate == 3e-4
    assert recipe.adapter.layers == [0, 2]
    assert recipe.data.test == ["a.jsonl"]
    assert recipe.evaluate.targets.bleu == 0.3
    assert "train" not in MINIMAL


def test_all_problems_are_told_at_once_each_with_its_key() -> None:
    found = problems_of(
        {
            "model": {"nmae": "x", "precision": "bf17"},
            "data": {"train": "a"},
            "trian": {},
            "train": {"lerning_rate": 1},
        },
        "adapter.r=0",
        "nonsense",
    )
    text = "\n".join(found)
    assert "model.name: missing" in text
    assert "model.nmae: unknown key; did you mean 'name'?" in text
    assert "model.precision: should be 'auto', 'fp32', 'bf16' or 'fp16' (given: 'bf17')" in text
    assert "trian: unknown key; did you mean 'train'?" in text
    assert "train.lerning_rate: unknown key; did you mean 'learning_rate'?" in text
    assert "adapter.r: should be greater than or equal to 1 (given: 0)" in text
    assert "--set nonsense: write it as section.key=value" in text
    assert len(found) == 7


@pytest.mark.parametrize(
    ("edits", "part"),
    [
        (["data.mapping={prompt: a}"], "data.mapping: prompt and completion go together"),
        (["data.mapping={}"], "name exactly one of"),
        (["data.format=mapping"], "data: format: mapping needs a mapping"),
        (["data.format=alpaca", "data.mapping={text: t}"], "exclude each other"),
        (["data.train=[]"], "data.train"),
        (["train.warmup_steps=10", "train.warmup_ratio=0.1"], "give one"),
        (["train.warmup_steps=2.5"], "whole number of steps"),
        (["train.early_stopping_threshold=0.1"], "does nothing without early_stopping_patience"),
        (["adapter.layers=last:2", "adapter.layers_to_transform=[1]"], "give one"),
        (["adapter.layers=last:0"], "adapter.layers"),
        (["train.report_to=mlflow"], "train.report_to"),
        (["train.seed=-1"], "train.seed"),
        (["evaluate.targets.blue=1"], "did you mean 'bleu'?"),
        (["model.name.x=1"], "'name' is not a section"),
        (["train.learning_rate=[1"], "not valid YAML"),
    ],
)
def test_wrong_values_are_explained(edits: list[str], part: str) -> None:
    found = problems_of(MINIMAL, *edits)
    assert part in "\n".join(found)
    assert "union" not in "\n".join(found)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a: [1", "not valid YAML: line 1"),
        (b"- a\n- b\n", "holds no mapping"),
        (b"", "holds no mapping"),
        (b"model: {name: x}\nmodel: {name: y}\n", "line 2: the key 'model' is given twice"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"[" * 100_000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_clear_error(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="1 problem") as caught:
        load_recipe(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_names_the_recipes_beside_it(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").touch()
    with pytest.raises(RecipeError, match=r"no such file[\s\S]*demo\.yaml"):
        load_recipe(tmp_path / "dmeo.yaml")
    with pytest.raises(RecipeError, match="this is a folder"):
        load_recipe(tmp_path)


def test_numbers_as_users_write_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "\ufeffmodel: {name: x}\ndata: {train: a.jsonl}\ntrain: {learning_rate: 3e-4, adam_epsilon: 1e-06}\r\n",
        encoding="utf-8",
    )
    assert load_recipe(path).train.learning_rate == 3e-4


def test_the_digest_is_of_the_meaning() -> None:
    spelled_out = {**MINIMAL, "data": {"train": ["train.jsonl"]}, "adapter": {"r": 16}}
    assert load_recipe(MINIMAL).digest() == load_recipe(spelled_out).digest()
    assert load_recipe(MINIMAL).digest() != load_recipe(MINIMAL, ["adapter.r=8"]).digest()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=12,
    )
)
def test_whatever_the_mapping_holds_the_only_error_is_a_recipe_error(values: Any) -> None:
    try:
        recipe = load_recipe({"model": values, "data": values, "train": values, "extra": values})
    except RecipeError as error:
        assert error.problems
    else:
        assert isinstance(recipe, Recipe)


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    for source in [*recipe.data.train, *(recipe.data.validation or []), *(recipe.data.test or [])]:
        assert not isinstance(source, str) or Path(source).is_file(), f"{source} is not shipped"

"""The check finds what was planted, and leaves the rest alone: the whole stage on sets with every kind of fault."""

from pathlib import Path

import pytest

import tunesmith
from tests.planted import CORPORA, named_rows, read_records, recipe_for, score
from tests.tiny import tiny_model_folder
from tunesmith.recipe_file import load_recipe

EACH = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


@pytest.mark.parametrize("name", CORPORA)
def test_what_is_planted_is_found_and_clean_rows_are_left_alone(name: str, model: Path, tmp_path: Path) -> None:
    planted = CORPORA[name].plant(EACH)
    recipe = load_recipe(recipe_for(planted.write(tmp_path), model))
    tunesmith.check(recipe, tmp_path / "run")
    result = score(planted, read_records(tmp_path / "run"))
    missed = [f"{fault.kind.name} ({fault.variant}) at {fault.at}" for kind in result.kinds for fault in kind.missed]
    assert not result.failures, "\n".join(result.failures + missed)


def test_the_same_set_in_another_order_loses_the_same_rows(model: Path, tmp_path: Path) -> None:
    kept = []
    planted = CORPORA["english"].plant(4)
    for order in (1, -1):
        folder = tmp_path / str(order)
        folder.mkdir()
        lines = {split: list(lines)[::order] for split, lines in planted.lines.items()}
        paths = {split: folder / f"{split}.jsonl" for split in lines}
        for split, path in paths.items():
            path.write_bytes(b"\n".join(lines[split]) + b"\n")
        tunesmith.check(load_recipe(recipe_for(paths, model)), folder / "run")
        named = named_rows(read_records(folder / "run"))
        kept.append({(lines[split][line - 1], frozenset(rules)) for (split, line), rules in named.items()})
    assert kept[0] == kept[1]

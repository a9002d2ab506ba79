"""The documents say what is so: commands parse, recipes load, keys and defaults are the code's, links lead on."""

import ast
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from scripts.readme_figures import TRAIN_PICTURE, train_picture, train_table

import tunesmith
from tunesmith import config
from tunesmith.cli import _parser, _recipe_and_folder
from tunesmith.data.checks.codes import CODES
from tunesmith.data.records import Place
from tunesmith.data.shapes import convert_row
from tunesmith.recipe_file import load_recipe

ROOT = Path(__file__).parents[1]
README_NAMES = ("README.md", "README.zh-CN.md")
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in README_NAMES}
NOT_OURS = {".venv", "build", "dist", "runs", "node_modules"}

SECTIONS: Mapping[str, type[BaseModel]] = {
    "model": config.ModelSection,
    "data": config.DataSection,
    "data.train (hub dataset)": config.HubDataset,
    "data.mapping": config.ColumnMapping,
    "data.rules": config.DataRules,
    "adapter": config.AdapterSection,
    "train": config.TrainSection,
    "evaluate": config.EvaluateSection,
    "evaluate.targets": config.Targets,
    "export": config.ExportSection,
}
"""Headings of docs/recipe.md, and the section each describes."""

STRANGE = re.compile(r"/root/|/home/|/tmp/")
"""Folders of one machine, which no reader has."""


def documents() -> list[Path]:
    """Every Markdown file of the project."""
    inner = (path for path in ROOT.rglob("*.md") if not NOT_OURS & set(path.relative_to(ROOT).parts))
    return sorted(path for path in inner if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The command lines of the sh blocks as words, without comments."""
    lines = (line for block in blocks(text, "sh") for line in block.splitlines())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def headings(text: str) -> list[str]:
    """The marks of the headings outside fenced blocks, as "##"."""
    return re.findall(r"^(#+) ", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)


def marked(text: str, name: str) -> str:
    """What stands between <!-- name --> and <!-- /name -->."""
    found = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert len(found) == 1, f"{name} is marked {len(found)} times"
    return str(found[0])


def table_rows(text: str) -> list[list[str]]:
    """The cells of the rows of Markdown tables, heads and rules left out."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    return [row for row in rows if row[0].startswith("`")]


@pytest.mark.parametrize("name", [*README_NAMES, "CONTRIBUTING.md"])
def test_every_command_of_a_document_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named_here = set(re.findall(r"^# (\S+\.yaml)$", "\n".join(blocks(text, "yaml")), re.MULTILINE))
    seen = set()
    for words in commands(text):
        program = words[0].removeprefix(".venv/bin/")
        seen.add(program)
        if program == "make":
            assert set(words[1:]) <= targets, words
        elif program == "tunesmith":
            options = _parser().parse_args(words[1:])  # exits, and so fails the test, where it is no command
            recipe: Path | None = getattr(options, "recipe", None)
            if recipe is not None and recipe.name not in named_here:
                _recipe_and_folder(options)
        elif program == "pip":
            assert words[1] == "install"
        else:
            assert words in (["python3", "-m", "venv", ".venv"], [".", ".venv/bin/activate"])
    assert seen >= ({"make", "tunesmith"} if name in READMES else {"make"})


@pytest.mark.parametrize("name", README_NAMES)
def test_the_table_of_commands_holds_every_subcommand(name: str) -> None:
    (choices,) = [action.choices for action in _parser()._actions if isinstance(action.choices, dict)]
    assert [
        row[0].strip("`").split()[1] for row in table_rows(READMES[name]) if row[0].startswith("`tunesmith ")
    ] == list(choices)


@pytest.mark.parametrize("name", README_NAMES)
def test_every_recipe_of_a_readme_loads(name: str) -> None:
    recipes = blocks(READMES[name], "yaml")
    assert len(recipes) == 3
    for text in recipes:
        load_recipe(yaml.safe_load(text))


@pytest.mark.parametrize("name", README_NAMES)
def test_the_recipe_that_is_explained_is_the_demos(name: str) -> None:
    shown = yaml.safe_load(blocks(READMES[name], "yaml")[0])
    assert load_recipe(shown) == load_recipe(ROOT / "recipes" / "demo.yaml")
    explained = {key for row in table_rows(READMES[name]) for key in re.findall(r"`(\w+\.\w+)`", row[0])} - {
        "data.format"
    }
    assert explained == {f"{section}.{key}" for section, values in shown.items() for key in values}


@pytest.mark.parametrize("name", README_NAMES)
def test_each_shape_of_the_table_is_read_as_such(name: str) -> None:
    rows = [row for row in table_rows(READMES[name]) if row[-1].startswith("`{")]
    shapes = {row[0].strip("`"): json.loads(row[1].strip("`")) for row in rows}
    assert set(shapes) == set(get_args(config.DataFormat)) - {"auto", "mapping"}
    data = config.DataSection(train=["x.jsonl"])
    for shape, values in shapes.items():
        converted = convert_row(values, Place("README", 1), data)
        assert (converted.shape, converted.unused_keys) == (shape, ())


@pytest.mark.parametrize("name", README_NAMES)
def test_the_python_of_a_readme_uses_public_names_only(name: str) -> None:
    for code in blocks(READMES[name], "python"):
        tree = ast.parse(code)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tunesmith"
        }
        imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert used
        assert used <= set(tunesmith.__all__)
        assert imported == ["tunesmith"]
        assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_both_readmes_say_the_same() -> None:
    english, chinese = READMES.values()
    assert headings(english) == headings(chinese)
    assert commands(english) == commands(chinese)
    for language in ("yaml", "python"):
        assert blocks(english, language) == blocks(chinese, language)
    first_cells = [[row[0].replace("、", ", ") for row in table_rows(text)] for text in (english, chinese)]
    assert first_cells[0] == first_cells[1]
    assert marked(english, "output:demo") == marked(chinese, "output:demo")
    numbers = [re.findall(r"\d+(?:[.,]\d+)*", marked(text, "figures:demo")) for text in (english, chinese)]
    assert numbers[0] == numbers[1]


def test_the_figures_are_real_ones() -> None:
    faults = json.loads((ROOT / "benchmarks" / "results" / "faults.json").read_text(encoding="utf-8"))
    train = json.loads((ROOT / "benchmarks" / "results" / "train.json").read_text(encoding="utf-8"))
    assert (ROOT / TRAIN_PICTURE).read_text(encoding="utf-8") == train_picture(train)
    for language, text in zip(("en", "zh"), READMES.values(), strict=True):
        assert marked(text, "figures:train") == f"{train_table(train, language)}\n"
        assert "Exact match" in marked(text, "output:demo")
        assert "| Exact match |" in marked(text, "figures:demo")
        assert "near-duplicate" in marked(text, "figures:truth")
        assert "1,000,000" in marked(text, "figures:scale")
        assert f"| **{faults['tries']}** | **{faults['lost']}** |" in marked(text, "figures:faults")


def test_the_exit_codes_are_those_of_the_code() -> None:
    from tunesmith import cli, errors

    known = {value for module in (cli, errors) for name, value in vars(module).items() if name.startswith("EXIT_")}
    for text in READMES.values():
        assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == known


def recipe_sections() -> dict[str, list[list[str]]]:
    """The tables of docs/recipe.md by their heading."""
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    parts = re.split(r"^##+ (.+)$", text, flags=re.MULTILINE)[1:]
    sections = {title: table_rows(body) for title, body in zip(parts[::2], parts[1::2], strict=True)}
    return {title: rows for title, rows in sections.items() if title != "Findings of the check"}


def test_every_code_of_the_check_is_described() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    body = re.split(r"^##+ .+$", text.partition("### Findings of the check\n")[2], flags=re.MULTILINE)[0]
    assert {row[0].strip("`"): row[1] for row in table_rows(body)} == CODES


def test_every_section_of_a_recipe_is_described() -> None:
    assert list(recipe_sections()) == list(SECTIONS)
    models = {value for value in vars(config).values() if isinstance(value, type) and issubclass(value, config.Section)}
    assert models - {config.Section, config.Recipe} == set(SECTIONS.values())


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_of_a_section_is_described_with_its_default(title: str) -> None:
    fields = SECTIONS[title].model_fields
    rows = recipe_sections()[title]
    assert [row[0].strip("`") for row in rows] == list(fields)
    for (_, kind, default, meaning), field in zip(rows, fields.values(), strict=True):
        assert meaning
        value = field.get_default(call_default_factory=True)
        if field.is_required():
            assert default == "needed"
        elif isinstance(value, BaseModel):
            assert default == "none"
        else:
            assert value in (default.strip("`"), yaml.safe_load(default.strip("`"))), field  # YAML reads on as true
        for choice in literals(field.annotation):
            assert f"`{choice}`" in kind, f"{title}: {kind} does not name {choice}"


def literals(annotation: Any) -> Iterator[object]:
    """The values of every Literal within a type."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    for inner in get_args(annotation):
        yield from literals(inner)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a file."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_nothing_of_the_place_it_was_made(path: Path) -> None:
    assert not STRANGE.search(path.read_text(encoding="utf-8"))


def test_the_map_names_every_source_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "tunesmith"
    for path in source.rglob("*.py"):
        if not path.name.startswith("_"):
            assert f"`{path.name}`" in text or f"/{path.name}`" in text, path.relative_to(source)


def test_the_map_names_no_file_that_is_gone() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.*")}
    named = {name for row in table_rows(text) for name in re.findall(r"`([\w/]+\.(?:py|css))`", row[0])}
    assert len(named) > 50
    for name in named:
        assert any(path.endswith(f"/{name}") for path in there), name


def test_the_map_shows_the_layers_that_are_enforced() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.findall(r'^  "(.+)",$', project.partition("layers = [\n")[2].partition("]")[0], re.MULTILINE)
    assert blocks(text, "text")[0].splitlines() == [layer.replace("tunesmith.", "") for layer in layers]


def test_the_map_gives_a_reason_for_each_dependency() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    body = project.partition("dependencies = [")[2].partition("[project.scripts]")[0]
    names = set(re.findall(r'^(?:  |\w+ = \[)"([\w-]+)', body, re.MULTILINE))
    assert {"torch", "datasets", "mypy"} <= names
    for name in names:
        assert re.search(rf"^\|.*\b{re.escape(name.replace('_', '-'))}\b.*\|$", text.replace("_", "-"), re.MULTILINE), (
            name
        )

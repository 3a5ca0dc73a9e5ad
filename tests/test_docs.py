"""The documents and the examples in docstrings tell the truth: links, commands, settings, results."""

import ast
import doctest
import importlib
import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from small_searches import evaluator
from torch import nn

from nni_gumbel.cli import main
from nni_gumbel.pipeline.settings import experiment_schema, settings_markdown

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("tests/**/*.md")])
of_each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "nni_gumbel").rglob("*.py")
    if ">>> " in path.read_text()
)


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def anchors(path):
    """The names that the headings of a document have in links, as they are made on the web."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@of_each_document
def test_lines_have_at_most_120_characters_outside_tables(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


@of_each_document
def test_links_lead_to_files_and_headings_that_exist(path):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@of_each_document
def test_commands_and_python_are_ones_that_exist(path, capsys):
    text = path.read_text()
    for word in set(re.findall(r"(?:`|^|&& )nni-gumbel (\w+)", text, re.MULTILINE)):
        try:
            code = main([word, "--help"])
        except SystemExit as ended:  # of argparse; the help of `create` is nnictl's
            code = ended.code
        assert code == 0, word
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_the_page_of_settings_is_what_the_command_writes():
    written = (ROOT / "examples" / "SETTINGS.md").read_text()
    assert written == settings_markdown() + "\n", (
        "run `nni-gumbel settings --markdown > examples/SETTINGS.md`"
    )


EXPERIMENTS = sorted([ROOT / "experiment.yml", *ROOT.glob("examples/*.yml")])


def schema():
    return json.loads((ROOT / "examples" / "experiment.schema.json").read_text())


def test_the_schema_of_an_experiment_is_what_the_command_writes():
    # As JSON: of the releases of pydantic one writes 0 and another 0.0.
    assert schema() == json.loads(experiment_schema()), (
        "run `nni-gumbel settings --schema > examples/experiment.schema.json`"
    )
    jsonschema.Draft7Validator.check_schema(schema())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_our_experiments_name_the_schema_and_fit_it(path):
    first = path.read_text().splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == ROOT / "examples" / "experiment.schema.json"
    jsonschema.validate(yaml.safe_load(path.read_text()), schema())


@pytest.mark.parametrize(
    ("part", "wrong", "where"),
    [
        ("classArgs", {"learning_rat": 0.1}, ["tuner", "classArgs"]),
        ("classArgs", {"search_epochs": 0}, ["tuner", "classArgs", "search_epochs"]),
        ("classArgs", {"max_params": "many"}, ["tuner", "classArgs", "max_params"]),
        ("classArgs", {"preset": "enas"}, ["tuner", "classArgs", "preset"]),
        ("searchSpace", {"seed": {"_type": "choice", "_value": [1]}}, ["searchSpace"]),
    ],
)
def test_an_editor_marks_a_wrong_setting(part, wrong, where):
    config = yaml.safe_load((ROOT / "experiment.yml").read_text())
    (config["tuner"] if part == "classArgs" else config)[part] = wrong
    (error,) = jsonschema.Draft7Validator(schema()).iter_errors(config)
    assert list(error.absolute_path) == where


class MySpace(ModelSpace):
    """The space of the examples in docstrings: four numbers in, one out."""

    def __init__(self):
        super().__init__()
        self.layer = LayerChoice({"linear": nn.Linear(4, 4), "identity": nn.Identity()}, label="layer")
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.layer(x))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_give_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where NNI keeps its experiments
    names = {"MySpace": MySpace, "evaluator": evaluator(), "torch": torch}
    failed, run = doctest.testmod(importlib.import_module(name), extraglobs=names)
    assert run and not failed

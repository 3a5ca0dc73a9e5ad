"""The trial command: its words, found inside what NNI runs, and checked without importing anything.

`nni-gumbel trial --help` explains the words (:func:`words_parser`).

Module names and data come from here alone, never from parameters: a person writes the command, but
whoever reaches NNI's port can write parameters. The check looks for modules as Python would and reads
their source; importing them would cost the tuner the seconds in which it must connect to NNI.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import symtable
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NoReturn

from nni_gumbel.data import DIRECTORY_FIELD, DOWNLOADED, FILE_PREFIX, PACKAGED, check_name, is_function
from nni_gumbel.data import FIELD as DATA_FIELD
from nni_gumbel.errors import UsageError, nearest
from nni_gumbel.names import import_named, no_module, split_name
from nni_gumbel.pipeline.loggers import FIELD as LOGGER_FIELD
from nni_gumbel.pipeline.loggers import LOGGERS, check_loggers
from nni_gumbel.results.space import FIELD as SPACE_FIELD
from nni_gumbel.results.space import SpaceReference

COMMAND = "nni-gumbel trial"
EVALUATOR_FIELD, COST_FIELD = "--evaluator", "--cost"

LOGGER_HELP = (
    "where what is logged goes, too, by Lightning's own loggers: files in the output directory (csv, tensorboard), or "
    "a service (wandb, mlflow; offline, too)"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"trial command: {message}; the form is {_form()}")


def words_parser() -> argparse.ArgumentParser:
    """The words after ``nni-gumbel trial`` and what each of them takes."""
    parser = _Parser(
        prog=COMMAND,
        add_help=False,
        allow_abbrev=False,
        epilog="Modules are looked for in trialCodeDirectory first. Settings are no words of this command: they stand "
        "in tuner.classArgs of experiment.yml (`nni-gumbel settings`).",
    )
    function = "module:function"
    parser.add_argument(
        "--space", nargs="+", required=True, metavar=("module:Class", "key=value"),
        help="the search space: a class that extends NNI's ModelSpace, and arguments of its constructor; a value is a "
        "number, true, false, or text",
    )  # fmt: skip
    parser.add_argument(
        DATA_FIELD, metavar="NAME",
        help=f"the data: {', '.join((PACKAGED, *DOWNLOADED))}; {FILE_PREFIX}FILE with x_train, y_train, x_test, "
        f"y_test; or {function} that returns a LightningDataModule (default without --evaluator: {PACKAGED})",
    )  # fmt: skip
    parser.add_argument(
        DIRECTORY_FIELD, metavar="DIR", default=TrialCommand.data_dir,
        help="folder that data sets are downloaded to and kept in (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        EVALUATOR_FIELD, metavar=function,
        help="your own loss, metric or task: a function that returns an NNI Lightning evaluator. It is given those of "
        "data, epochs, batch_size, learning_rate, weight_decay, seed, optimizer, precision, trainer that it has "
        "parameters for (default: image classification by cross-entropy)",
    )  # fmt: skip
    parser.add_argument(
        COST_FIELD, metavar=function,
        help="what the setting cost_weight prices, instead of the setting cost: a function of `sample` (an NNI sample) "
        "or `network` (the frozen module) that returns a number",
    )  # fmt: skip
    parser.add_argument(
        LOGGER_FIELD, metavar="NAME", nargs="+", choices=LOGGERS, default=(), help=LOGGER_HELP
    )
    return parser


def _form() -> str:
    return " ".join(words_parser().format_usage().split()).removeprefix("usage: ")


@dataclass(frozen=True)
class TrialCommand:
    """What every trial of an experiment is told by its command line."""

    space: str
    space_arguments: tuple[str, ...] = ()
    data: str | None = None
    data_dir: str = "data"
    evaluator: str | None = None
    cost: str | None = None
    loggers: tuple[str, ...] = ()

    @property
    def data_is_at_hand(self) -> bool:
        """Whether looking at the data downloads nothing and runs nobody's code."""
        return self.data == PACKAGED or str(self.data).startswith(FILE_PREFIX)

    @property
    def reference(self) -> SpaceReference:
        """The space and the arguments of its constructor."""
        return SpaceReference.parse(self.space, self.space_arguments)

    @classmethod
    def parse(cls, words: Sequence[str]) -> TrialCommand:
        """Read the words after ``nni-gumbel trial``.

        Raises:
            UsageError: a word is missing, unknown or has another form.
        """
        found = words_parser().parse_args(list(words))
        space, *arguments = found.space
        # An evaluator of one's own may bring its data along.
        data = found.data if found.data or found.evaluator else PACKAGED
        command = cls(
            space, tuple(arguments), data, found.data_dir, found.evaluator, found.cost, tuple(found.logger)
        )
        SpaceReference.parse(command.space, command.space_arguments)
        if command.data is not None:
            check_name(command.data)
        for field, reference in command._named().items():
            split_name(field, reference)
        return command

    @classmethod
    def from_trial_command(cls, text: str) -> TrialCommand:
        """Read ``trialCommand`` of an experiment: a shell line that runs ``nni-gumbel trial …``.

        Raises:
            UsageError: it does not run that, or with wrong words.
        """
        try:
            shell = shlex.shlex(text, posix=True, punctuation_chars=True)
            shell.whitespace_split = True
            words = list(shell)
        except ValueError as error:
            raise UsageError(
                f"trialCommand: {text!r} cannot be read ({error}); the form is {_form()}"
            ) from None
        for start, word in enumerate(words, start=1):
            program = Path(word).name == "nni-gumbel" or words[max(start - 2, 0) : start] == [
                "-m",
                "nni_gumbel.cli",
            ]
            if program and words[start : start + 1] == ["trial"]:
                rest = words[start + 1 :]
                ends = (index for index, each in enumerate(rest) if set(each) <= set("();<>|&"))
                return cls.parse(rest[: next(ends, len(rest))])
        raise UsageError(f"trialCommand: {text!r} does not run `{COMMAND}`; the form is {_form()}")

    def check(self, code_directory: str | Path) -> None:
        """See that all that the command names exists, as a trial in that directory would find it.

        Raises:
            UsageError: a module, a class, a function or the package of a logger is not there.
        """
        for field, reference in self._named().items():
            _check_named(field, reference, Path(code_directory))
        check_loggers(self.loggers)

    def _named(self) -> dict[str, str]:
        """What it names as ``module:name``, by field."""
        data = self.data if self.data is not None and is_function(self.data) else None
        named = {
            SPACE_FIELD: self.space,
            EVALUATOR_FIELD: self.evaluator,
            COST_FIELD: self.cost,
            DATA_FIELD: data,
        }
        return {field: reference for field, reference in named.items() if reference is not None}

    def own_cost(self) -> Callable[..., Any] | None:
        """The function that it names as the cost; ``None`` if it names none.

        Raises:
            UsageError: there is no such function.
        """
        return None if self.cost is None else import_named(COST_FIELD, self.cost)


def _check_named(field: str, reference: str, directory: Path) -> None:
    module, name = split_name(field, reference)
    spec = _find(module, directory)
    if spec is None:
        raise no_module(field, module, directory)
    if spec.origin is None or not spec.origin.endswith(".py"):
        return  # compiled: what is in it shows when it is imported
    try:
        source = Path(spec.origin).read_bytes()
        table = symtable.symtable(source, spec.origin, "exec")
    except (SyntaxError, ValueError, OSError) as error:
        line = getattr(error, "lineno", None)
        where = f"{spec.origin}, line {line}" if line else spec.origin
        raise UsageError(
            f"{field}: {where} is not Python ({getattr(error, 'msg', error)}); correct it"
        ) from None
    names = [each.get_name() for each in table.get_symbols() if each.is_assigned() or each.is_imported()]
    if name not in names and not re.search(rb"^\s*from .+ import \*", source, re.MULTILINE):
        raise UsageError(f"{field}: module {module!r} ({spec.origin}) has no {name!r}{nearest(name, names)}")


def _find(module: str, directory: Path) -> ModuleSpec | None:
    """The module, looked for in the directory first; nothing is imported on the way."""
    first, *rest = module.split(".")
    spec = PathFinder.find_spec(first, [str(directory)])
    if spec is None or spec.origin is None and not rest:
        # Also installed packages. A folder of the same name without __init__.py does not hide them.
        try:
            spec = importlib.util.find_spec(first) or spec
        except ValueError:
            return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    return spec

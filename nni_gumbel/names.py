"""Objects that a person names as ``module:name``: spaces, data modules, evaluators.

Found from the working directory, as ``python -m`` would; whatever goes wrong is one line that names
the field, the name and the remedy. Such names come from the trial command or from a bundle, never
from a parameter that NNI's manager hands out.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nni_gumbel.errors import UsageError, user_code


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Work in the trial code directory, where a trial finds modules and files."""
    before, path = Path.cwd(), list(sys.path)
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


def ignore_what_nni_wonders_about() -> None:
    """Do not show the warnings of NNI about classes that torch has added since: nobody can do anything about them."""
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"nni\.nas")


def split_name(field: str, reference: str) -> tuple[str, str]:
    """Take ``package.module:name`` apart without importing anything.

    Raises:
        UsageError: the reference does not have that form.
    """
    module, colon, name = reference.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UsageError(
            f"{field}: {reference!r} does not have the form module:name; give e.g. my_module:my_name"
        )
    return module, name


def import_named(field: str, reference: str) -> Any:
    """Import what ``module:name`` names, looking in the working directory first.

    Raises:
        UsageError: there is no such module, its import fails, or it has no such name.
    """
    module, name = split_name(field, reference)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    with user_code(f"{field}: importing {module!r} fails", "install or correct it"):
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                raise no_module(field, module, here) from error
            raise
    if not hasattr(loaded, name):
        own = [key for key, value in vars(loaded).items() if getattr(value, "__module__", None) == module]
        there = ", ".join(sorted(own)) or "nothing"
        raise UsageError(f"{field}: module {module!r} has no {name!r}; it defines {there}")
    return getattr(loaded, name)


def no_module(field: str, module: str, directory: str | Path) -> UsageError:
    """What is told where ``module`` is neither in the directory nor installed."""
    path = module.replace(".", "/") + ".py"
    return UsageError(
        f"{field}: there is no module {module!r} in {directory}; put {path} there or correct the name"
    )


def call_named(field: str, reference: str, arguments: Mapping[str, Any], result: type) -> Any:
    """Call a person's function with those of ``arguments`` that it has parameters for, by keyword.

    Args:
        field: of the trial command, for messages.
        reference: ``module:function``.
        arguments: by name, whatever a function may ask for.
        result: the type that it must return an instance of.

    Raises:
        UsageError: it cannot be called, asks for something else, fails, or returns something else.
    """
    function = import_named(field, reference)
    if not callable(function):
        raise UsageError(f"{field}: {reference} is no function; name one")
    parameters = inspect.signature(function).parameters.values()
    rest = [each for each in parameters if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter not in rest and parameter.name not in arguments:
            raise UsageError(
                f"{field}: {reference} asks for {parameter.name!r}; it can be given {', '.join(arguments)}"
            )
    takes_all = any(each.kind is each.VAR_KEYWORD for each in rest)
    names = set(arguments) if takes_all else {parameter.name for parameter in parameters}
    with user_code(f"{field}: {reference} fails", "correct that function"):
        found = function(**{name: value for name, value in arguments.items() if name in names})
    if not isinstance(found, result):
        raise UsageError(
            f"{field}: {reference} returns {type(found).__name__}; return a {result.__name__} of {result.__module__}"
        )
    return found

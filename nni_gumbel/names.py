"""Objects that a person names as ``module:name``: spaces, data modules, evaluators.

Found from the working directory, as ``python -m`` would; whatever goes wrong is one line that names
the field, the name and the remedy. Such names come from the trial command or from a bundle, never
from a parameter that NNI's manager hands out.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nni_gumbel.errors import UsageError, user_code


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


def import_named(field: str, module: str, name: str) -> Any:
    """Import ``name`` from ``module``, looking in the working directory first.

    Raises:
        UsageError: there is no such module, its import fails, or it has no such name.
    """
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


def call_with(field: str, reference: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a person's function with those of ``arguments`` that it has parameters for, by keyword.

    Raises:
        UsageError: it cannot be called, asks for something else, or fails.
    """
    if not callable(function):
        raise UsageError(f"{field}: {reference} is no function; name one")
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for parameter in parameters:
        has_default = parameter.default is not parameter.empty
        is_rest = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not has_default and not is_rest and parameter.name not in arguments:
            raise UsageError(
                f"{field}: {reference} asks for {parameter.name!r}; it can be given {', '.join(arguments)}"
            )
    names = set(arguments) if takes_all else {parameter.name for parameter in parameters}
    with user_code(f"{field}: {reference} fails", "correct that function"):
        return function(**{name: value for name, value in arguments.items() if name in names})

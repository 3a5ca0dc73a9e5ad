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

from nni_gumbel.errors import UsageError, first_line


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
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{field}: importing {module!r} fails: {first_line(error)}; install or correct it"
            ) from error
        path = module.replace(".", "/") + ".py"
        raise UsageError(
            f"{field}: there is no module {module!r} in {here}; put {path} there or correct the name"
        ) from error
    except Exception as error:  # whatever a person's module raises while it is imported
        raise UsageError(
            f"{field}: importing {module!r} fails: {first_line(error)}; correct that module"
        ) from error
    if not hasattr(loaded, name):
        own = [key for key, value in vars(loaded).items() if getattr(value, "__module__", None) == module]
        there = ", ".join(sorted(own)) or "nothing"
        raise UsageError(f"{field}: module {module!r} has no {name!r}; it defines {there}")
    return getattr(loaded, name)


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
    try:
        return function(**{name: value for name, value in arguments.items() if name in names})
    except UsageError:
        raise
    except Exception as error:  # whatever a person's code raises
        raise UsageError(f"{field}: {reference} fails: {first_line(error)}; correct that function") from error

"""Objects that a person names as ``module:name``: spaces, data modules, evaluators.

Found from the working directory, as ``python -m`` would; whatever goes wrong is one line that names
the field, the name and the remedy. Such names come from the trial command or from a bundle, never
from a parameter that NNI's manager hands out.
"""

from __future__ import annotations

import importlib
import sys
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

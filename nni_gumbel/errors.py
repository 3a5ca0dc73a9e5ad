"""The exceptions that are written for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """A person's mistake, told in one line: the field, the value and the remedy.

    Whoever catches it prints ``str(error)`` alone, without a traceback.
    """


class UnsupportedError(UsageError, TypeError):
    """A limit of this project: NNI can express it, and no relaxation of it is known here. A TypeError, as NNI's is."""


def first_line(error: BaseException) -> str:
    """The line that is shown for any exception: a usage error's own text, else type and message."""
    text = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, UsageError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, else all of them."""
    known = list(known)
    found = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(known)}"


@contextmanager
def user_code(what: str, remedy: str) -> Iterator[None]:
    """Tell whatever a person's code raises in one line; a usage error stays as it is.

    Args:
        what: the field, the name and what fails.
        remedy: what the person can do.

    Raises:
        UsageError: ``what: error; remedy``.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}; {remedy}") from error

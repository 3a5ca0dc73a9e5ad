"""Which space a network comes from: a class by name, and the arguments of its constructor.

That is all that a trial command and a bundle keep of a space; the instance is built from it where it
is needed. Naming a space imports nothing, building it imports torch and NNI.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nni_gumbel.errors import UsageError, first_line, user_code
from nni_gumbel.names import import_named, split_name

if TYPE_CHECKING:
    from nni.nas.nn.pytorch import ModelSpace
    from torch import nn

FIELD = "--space"


@dataclass(frozen=True)
class SpaceReference:
    """A space's class, ``module:name``, and its constructor's arguments."""

    module: str
    name: str
    arguments: dict[str, int | float | str | bool] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    @classmethod
    def parse(cls, reference: str, arguments: Iterable[str] = ()) -> SpaceReference:
        """Read ``my_module:MySpace`` and ``key=value`` words, as they stand in the trial command.

        Whole numbers, numbers and ``true``/``false`` become such; every other value stays a string.

        Raises:
            UsageError: a word has another form, or a key comes twice.
        """
        module, name = split_name(FIELD, reference)
        values: dict[str, int | float | str | bool] = {}
        for word in arguments:
            key, equals, text = word.partition("=")
            if not (equals and key.isidentifier()):
                raise UsageError(
                    f"{FIELD}: argument {word!r} of {reference} does not have the form key=value"
                )
            if key in values:
                raise UsageError(f"{FIELD}: argument {key!r} of {reference} is given twice; give it once")
            values[key] = _value(text)
        return cls(module, name, values)

    def build(self, space: Any = None) -> ModelSpace:
        """Construct the space.

        Args:
            space: its class; if omitted, it is imported from the working directory.

        Raises:
            UsageError: the class is not found or is no ``ModelSpace``, the constructor refuses the
                arguments, or nothing in the space is left to choose.
        """
        from nni.nas.nn.pytorch import ModelSpace

        space = import_named(FIELD, str(self)) if space is None else space
        if not (inspect.isclass(space) and issubclass(space, ModelSpace)):
            raise UsageError(
                f"{FIELD}: {self} is no nni.nas.nn.pytorch.ModelSpace; name a class derived from that"
            )
        given = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items()) or "no arguments"
        fails = f"{FIELD}: {self} cannot be built with {given}"
        with user_code(fails, f"its arguments are {_signature(space)}"):
            built = space(**self.arguments)
        variables = variables_of(built)
        if not variables:
            raise UsageError(
                f"{FIELD}: {self} has nothing to choose; put a LayerChoice or an InputChoice into it"
            )
        for label, variable in variables.items():
            candidates = _candidates(variable)
            if len({_as_json(value) for value in candidates} - {None}) < len(candidates):
                raise UsageError(
                    f"{FIELD}: choice {label!r} of {self} has candidates that JSON cannot tell apart, "
                    f"{candidates}; give numbers, words or tuples of them, or a LayerChoice"
                )
        return built


def variables_of(space: ModelSpace) -> dict[str, Any]:
    """The random variables of a space by label, as NNI's ``simplify`` gives them.

    Raises:
        UsageError: two choices share a label and are not the same.
    """
    try:
        return space.simplify()
    except ValueError as error:
        raise UsageError(
            f"space {type(space).__name__!r}: {first_line(error)}; give different choices different labels"
        ) from error


def network_of(space: ModelSpace, sample: Mapping[str, Any]) -> nn.Module:
    """The network of an NNI sample, with new weights, as the space's own constructor builds it.

    The constructor runs once more, with the arguments of ``space``, in NNI's ``model_context``: each choice is at once
    what it chooses. What the constructor ties, initialises or hooks is so in the network. NNI's ``freeze`` replaces
    the choices afterwards instead, by copies that untie, and builds the hub's class in the place of a derived one.

    Args:
        space: any instance of the space, mutated or not; it is left as it is.
        sample: labels that the network does not use may be missing.

    Raises:
        UsageError: the constructor fails there, as one does that looks into the candidates of a choice.
    """
    from nni.nas.space import model_context

    # Candidates that are not chosen are built as well, and take the values of their own labels.
    complete = {label: variable.default() for label, variable in variables_of(space).items()} | dict(sample)
    fails = f"{FIELD}: {type(space).__name__} cannot be built at {dict(sample)}"
    remedy = "in NNI's model_context, where its constructor runs then, a LayerChoice is the candidate that it chooses"
    with user_code(fails, remedy), model_context(complete):
        return type(space)(*space.trace_args, **space.trace_kwargs)


def sample_of(space: ModelSpace, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The NNI sample that an architecture from a JSON file stands for.

    JSON has no tuples, and JavaScript writes 3.0 as 3; NNI's ``freeze`` wants the candidate itself. What
    is no candidate stays as it is, for ``freeze`` to refuse.
    """
    variables = space.simplify()

    def candidate(label: str, value: Any) -> Any:
        same = [one for one in _candidates(variables.get(label)) if _as_json(one) == _as_json(value)]
        return same[0] if same else value

    return {label: candidate(label, value) for label, value in architecture.items()}


def _candidates(variable: Any) -> list[Any]:
    return list(getattr(variable, "values", ()))


def _as_json(value: Any) -> str | None:
    """See :func:`canonical`; ``None`` for what JSON cannot hold."""
    try:
        return canonical(value)
    except (TypeError, ValueError):
        return None


def canonical(value: Any) -> str:
    """JSON that is the same before and after a way through JavaScript, which writes 3.0 as 3.

    Raises:
        TypeError, ValueError: JSON cannot hold it.
    """

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: plain(each) for key, each in part.items()}
        if isinstance(part, (list, tuple)):
            return [plain(each) for each in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    return json.dumps(plain(value), sort_keys=True, allow_nan=False)


def _value(text: str) -> int | float | str | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        # A bundle keeps arguments as JSON, which has no infinities; such a word stays a word.
        if math.isfinite(number):
            return number
    return text


def _signature(space: type) -> str:
    """The constructor as its author wrote it: NNI's wrapper around it takes anything."""
    for base in space.__mro__:
        written = vars(base).get("_init_wrapped")
        if written is not None and written.__qualname__ == f"{base.__qualname__}.__init__":
            parameters = list(inspect.signature(written).parameters.values())[1:]
            return f"({', '.join(str(parameter) for parameter in parameters)})"
    return "()"

"""What a setting is: a field of a frozen pydantic model that carries its default, range and documentation.

The check, the message, the JSON schema for editors and the table of ``examples/SETTINGS.md`` are made from the field.
Imports nothing heavy: the tuner, which must connect to NNI within ten seconds, reads settings too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nni_gumbel.errors import UsageError, nearest


def setting(default: Any, doc: str, *, basic: bool = False, coupled: str = "", **limits: Any) -> Any:
    """Declare a setting.

    Args:
        default: its default.
        doc: one line for the table of settings and for editors.
        basic: a first experiment may want to change it; the others are for experts.
        coupled: words, separated by spaces. Settings with the same word belong together: what one of them may be, or
            does, depends on the others.
        **limits: pydantic's ``ge``, ``gt``, ``le``.
    """
    return Field(default, description=doc, json_schema_extra={"basic": basic, "coupled": coupled}, **limits)


class Settings(BaseModel):
    """A model whose fields are settings.

    Raises:
        UsageError: a name is unknown, or a value has the wrong type or is out of its range; one line says which.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise UsageError(self._line(error)) from None

    @classmethod
    def _line(cls, error: ValidationError) -> str:
        """The first of pydantic's errors, with the remedy."""
        first = error.errors(include_url=False)[0]
        kind, value = first["type"], first["input"]
        if kind == "value_error":  # of a check of ours
            return str(first["ctx"]["error"])
        name = first["loc"][0]
        if kind == "extra_forbidden":
            return f"{name}: there is no such setting{nearest(name, cls.model_fields)}"
        if kind == "float_type" and _is_number(value):
            # YAML 1.1 reads 1e-3 as text: it wants a dot and a sign.
            plain = f"{float(value):.12f}".rstrip("0")
            return f"{name}: YAML reads {value} as text; write {plain} instead"
        allowed = allowed_values(cls.model_json_schema()["properties"][name])
        if kind == "literal_error" and not isinstance(value, str):
            kind = "string_type"
        noun = {"int_type": "a whole number", "float_type": "a number", "string_type": "a word"}.get(kind)
        if noun is not None:
            return f"{name}: {value!r} is not {noun}; give {noun}, {allowed}"
        return f"{name}: {value!r} is out of range; give {allowed}"


def allowed_values(schema: Mapping[str, Any]) -> str:
    """The allowed values of a setting in words.

    Args:
        schema: the JSON schema of its field.
    """
    if "anyOf" in schema:
        return ", or ".join(map(allowed_values, schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema["type"] == "object":
        return schema["title"]
    if schema["type"] == "null":
        return "left out"
    words = {"minimum": "at least", "exclusiveMinimum": "greater than", "maximum": "at most"}
    return (
        " and ".join(f"{word} {schema[bound]:g}" for bound, word in words.items() if bound in schema) or "any"
    )


def _is_number(text: Any) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False

"""A record that a trial keeps as a JSON file in its output directory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from nni_gumbel.errors import first_line

logger = logging.getLogger(__name__)


class Record(BaseModel):
    """Fields that are kept in a file of the name :attr:`FILE`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    FILE: ClassVar[str]

    def write(self, folder: Path) -> None:
        """Write the file."""
        (folder / self.FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The record in a folder; ``None`` if there is none, and, with a warning, if its file is damaged."""
        path = folder / cls.FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except (ValidationError, OSError) as error:
            logger.warning("%s holds no %s: %s; remove it", path, cls.__name__.lower(), first_line(error))
        return None

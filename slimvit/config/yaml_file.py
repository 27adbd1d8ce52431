"""A YAML file with a checked content: read, with every defect at once, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError
from typing_extensions import Self

from slimvit.config.training import Section
from slimvit.config.validation import defects_of
from slimvit.utils.errors import RecipeError
from slimvit.utils.files import Unreadable, read_yaml


class Document(Section):
    """The content of a file."""

    kind: ClassVar[str]
    """What such a file is called."""
    begins_with: ClassVar[str]
    """Keys by which a reader may know it."""

    @classmethod
    def parse(cls, data: Any, source: str | None = None) -> Self:
        """Checked content from plain data; raises `RecipeError` with every defect in one line."""
        source = source or cls.kind
        if not isinstance(data, dict):
            raise RecipeError(f"{source}: expected a mapping with {cls.begins_with}, found {type(data).__name__}")
        try:
            return cls.model_validate(data)
        except ValidationError:
            raise RecipeError(f"{source}: " + "; ".join(defects_of(cls, data))) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file; raises `RecipeError` where it is missing, no YAML, or has a defect."""
        try:
            data = read_yaml(path)
        except FileNotFoundError:
            raise RecipeError(f"{path}: no such {cls.kind}; `slimvit recipes list` names the shipped ones") from None
        except Unreadable as error:
            raise RecipeError(f"{path}: not readable as YAML: {error}") from None
        return cls.parse(data, str(path))

    def to_yaml(self) -> str:
        """Write the checked content as YAML, defaults included."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

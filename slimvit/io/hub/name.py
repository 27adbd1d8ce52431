"""Model names on the Hugging Face Hub: `hf-hub:user/name[@revision]`. No torch, no network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from slimvit.utils.errors import ModelError

PREFIX = "hf-hub:"
FOLDERS = ("best", "original")
"""Folders of further models that `slimvit push --include` uploads."""
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A model repository, a folder in it (empty for the root), and a revision (None for the main branch)."""

    repo: str
    folder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        place = f"{self.repo}/{self.folder}" if self.folder else self.repo
        return f"{PREFIX}{place}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit. A pinned name always means the same model."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    @property
    def branch(self) -> str | None:
        """Branch or tag under which the cache stores the commit; None if the revision is a commit."""
        return None if self.is_pinned else self.revision or "main"

    def at(self, revision: str) -> HubName:
        """Return the name with another revision."""
        return replace(self, revision=revision)

    def path(self, file: str) -> str:
        """Return the path of one of the model's files in the repository."""
        return f"{self.folder}/{file}" if self.folder else file


def is_hub_name(name: str | Path) -> bool:
    """Return whether a name starts with `hf-hub:`."""
    return str(name).startswith(PREFIX)


def hub_name(name: str | Path) -> HubName:
    """Parse a name of the form `hf-hub:user/name[@revision]`.

    Raises:
        ModelError: The name has another form.
    """
    place, at, revision = str(name).removeprefix(PREFIX).partition("@")
    parts = place.split("/")
    folder = parts.pop() if len(parts) == 3 and parts[-1] in FOLDERS else ""
    try:
        check_repo("/".join(parts))
    except ValueError as error:
        raise ModelError(f"{name}: {error}; Hub models have names of the form {PREFIX}user/name[@revision]") from None
    if at and not is_revision(revision):
        raise ModelError(
            f"{name}: {revision!r} cannot be a branch, tag or commit; give one after the @, or leave both out"
        )
    return HubName("/".join(parts), folder, revision or None)


def is_revision(text: str) -> bool:
    """Return whether a text is a valid branch, tag or commit name."""
    return REVISION.fullmatch(text) is not None and ".." not in text


def check_repo(repo: str) -> None:
    """Raise `ValueError` with the reason for an invalid repository name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"{repo!r} is not of the form user/name")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(" ".join(str(error).split()).rstrip(".")) from None

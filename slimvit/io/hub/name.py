"""`hf-hub:user/name@revision`: how a model on the Hugging Face Hub is named. No torch, no network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from slimvit.utils.errors import ModelError

PREFIX = "hf-hub:"
FOLDERS = ("best", "original")
"""Folders of a repository that hold further models: what `slimvit push --include` takes along."""
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A model repository, a folder in it (empty: its top), and a branch, tag or commit (None: its main branch)."""

    repo: str
    folder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        place = f"{self.repo}/{self.folder}" if self.folder else self.repo
        return f"{PREFIX}{place}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit, and so will always mean the same."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    @property
    def branch(self) -> str | None:
        """What the cache is to remember its commit under: None for a name that is a commit."""
        return None if self.is_pinned else self.revision or "main"

    def at(self, revision: str) -> HubName:
        return replace(self, revision=revision)

    def path(self, file: str) -> str:
        """Where a file of the model lies in the repository."""
        return f"{self.folder}/{file}" if self.folder else file


def is_hub_name(name: str | Path) -> bool:
    return str(name).startswith(PREFIX)


def hub_name(name: str | Path) -> HubName:
    """What a name that begins with `hf-hub:` says. Raises :class:`ModelError` for one that names nothing."""
    place, at, revision = str(name).removeprefix(PREFIX).partition("@")
    parts = place.split("/")
    folder = parts.pop() if len(parts) == 3 and parts[-1] in FOLDERS else ""
    try:
        check_repo("/".join(parts))
    except ValueError as error:
        raise ModelError(f"{name}: {error}; a model on the Hub is named {PREFIX}user/name[@revision]") from None
    if at and not is_revision(revision):
        raise ModelError(f"{name}: {revision!r} is no branch, tag or commit; name one after the @, or leave both out")
    return HubName("/".join(parts), folder, revision or None)


def is_revision(text: str) -> bool:
    """Whether a branch, tag or commit can be called so."""
    return REVISION.fullmatch(text) is not None and ".." not in text


def check_repo(repo: str) -> None:
    """Raise :class:`ValueError`, with the reason, for what cannot be a repository's name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"{repo!r} is not of the form user/name")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(" ".join(str(error).split()).rstrip(".")) from None

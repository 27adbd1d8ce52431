"""List repositories on the Hugging Face Hub, and fetch named files of bounded size. No torch.

huggingface_hub fetches files by their exact names into its own cache, after their sizes are checked. A commit never
changes, so its files in the cache are used without asking the Hub again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slimvit.io.hub.errors import Unreachable, bars, hub_errors, line_of
from slimvit.io.hub.name import HubName
from slimvit.utils.errors import ModelError
from slimvit.utils.progress import log

TIMEOUT = 30
"""Seconds to wait for an answer about a repository."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    name: HubName
    """The repository's name with the commit as revision."""
    sizes: Mapping[str, int | None] | None
    """Path in the repository -> bytes; None where the Hub was not asked."""

    def has(self, file: str) -> bool:
        """Return whether a file lies in the model's folder, as far as is known."""
        if self.sizes is None:
            return cached(self.name, file) is not None
        return self.name.path(file) in self.sizes


def listing(name: HubName) -> Listing:
    """Ask the Hub for the files of a repository.

    Raises:
        ModelError: There is no such repository, or it may not be read.
        Unreachable: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with hub_errors(str(name)):
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT)
    pinned = name.at(str(info.sha))
    if not pinned.is_pinned:
        raise ModelError(f"{name}: the Hub names no commit for it, so it cannot be fetched")
    return Listing(pinned, {sibling.rfilename: sibling.size for sibling in info.siblings or ()})


def cached(name: HubName, file: str) -> Path | None:
    """Return a file of the name's revision in the cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repo, name.path(file), revision=name.revision)
    return Path(found) if isinstance(found, str) else None


def find(name: HubName, files: Sequence[str]) -> tuple[Listing, str]:
    """Find the commit that a name means now, and the first of `files` in it.

    Without a network, the commit that was fetched under this name before is used, with a line on stderr.

    Raises:
        ModelError: The repository holds none of the files.
    """
    if name.is_pinned and cached(name, files[0]) is not None:
        return Listing(name, None), files[0]
    try:
        found = listing(name)
    except Unreachable as error:
        for file in files:
            if (path := cached(name, file)) is not None:
                pinned = name.at(_commit(path, name, file))
                log(f"{error}; taking what was fetched before: {pinned}")
                return Listing(pinned, None), file
        raise Unreachable(f"{error}; nothing was fetched of it before") from None
    for file in files:
        if found.has(file):
            return found, file
    raise ModelError(f"{name}: holds no {' and no '.join(files)}, so it is neither a model of slimvit nor of timm")


def fetch(found: Listing, files: Mapping[str, int], revision: str | None = None) -> Path:
    """Fetch files of a model into the cache.

    Args:
        found: The repository at one commit.
        files: File name -> most bytes it may have.
        revision: The branch or tag that led to the commit, which the cache stores for use without a network.

    Returns:
        The folder with the files, a snapshot of links into the cache.

    Raises:
        ModelError: A file is missing or too large; nothing is fetched then.
    """
    name = found.name
    there = {file: cached(name, file) for file in files}
    if any(path is None for path in there.values()):
        sizes = found.sizes if found.sizes is not None else listing(name).sizes
        assert sizes is not None
        _check_sizes(name, files, sizes)
        _download(name, list(files), revision)
        there = {file: cached(name, file) for file in files}
    for file, most in files.items():
        path = there[file]
        if path is None:
            raise ModelError(f"{name}: changed while {file} was fetched; try again, or name a commit after the @")
        if path.stat().st_size > most:
            raise ModelError(f"{name}: {file} has {path.stat().st_size:,} bytes, at most {most:,} are taken")
        folder = path.parent
    return folder


def _check_sizes(name: HubName, files: Mapping[str, int], sizes: Mapping[str, int | None]) -> None:
    for file, most in files.items():
        if name.path(file) not in sizes:
            raise ModelError(f"{name}: holds no {file}")
        size = sizes[name.path(file)]
        if size is None or size > most:
            count = "an unknown number of" if size is None else f"{size:,}"
            raise ModelError(f"{name}: {file} has {count} bytes, at most {most:,} are taken; nothing was fetched")


def _download(name: HubName, files: Sequence[str], revision: str | None) -> None:
    from huggingface_hub import snapshot_download

    patterns = [name.path(file) for file in files]
    try:
        with hub_errors(str(name)), bars():
            snapshot_download(name.repo, revision=revision or name.revision, allow_patterns=patterns)
    except (RuntimeError, ValueError) as error:  # raised when the transfer of large files fails
        raise ModelError(f"{name}: could not be fetched: {line_of(error)}; try again") from None


def _commit(path: Path, name: HubName, file: str) -> str:
    """The commit of a cached file, which is the name of its snapshot."""
    return path.parents[name.path(file).count("/")].name

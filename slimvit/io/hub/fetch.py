"""Lists repositories on the Hugging Face Hub and fetches files by name, up to a given size. No torch.

Sizes are checked first, then huggingface_hub fetches the files into its own cache. A commit never changes, so its
cached files are used without asking the Hub again.
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
"""Timeout in seconds of a request about a repository."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    name: HubName
    """Name of the repository, with the commit as revision."""
    sizes: Mapping[str, int | None] | None
    """Sizes in bytes by path in the repository; None if the Hub was not asked."""

    def has(self, file: str) -> bool:
        """Return whether the model's folder, or the cache if the Hub was not asked, holds a file."""
        if self.sizes is None:
            return cached(self.name, file) is not None
        return self.name.path(file) in self.sizes


def listing(name: HubName) -> Listing:
    """Ask the Hub for the files of a repository.

    Raises:
        ModelError: The repository does not exist, or may not be read.
        Unreachable: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with hub_errors(str(name)):
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT)
    pinned = name.at(str(info.sha))
    if not pinned.is_pinned:
        raise ModelError(f"{name}: the Hub reports no commit for it, so it cannot be fetched")
    return Listing(pinned, {sibling.rfilename: sibling.size for sibling in info.siblings or ()})


def cached(name: HubName, file: str) -> Path | None:
    """Return the path of a cached file of the name's revision, or None."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name.repo, name.path(file), revision=name.revision)
    return Path(path) if isinstance(path, str) else None


def find(name: HubName, files: Sequence[str]) -> tuple[Listing, str]:
    """Resolve a name to its present commit, and find the first of `files` in it.

    Without a network, the commit last fetched under this name is used, with a line on stderr.

    Raises:
        ModelError: The repository holds none of the files.
    """
    if name.is_pinned and cached(name, files[0]) is not None:
        return Listing(name, None), files[0]
    try:
        repository = listing(name)
    except Unreachable as error:
        for file in files:
            if (path := cached(name, file)) is not None:
                pinned = name.at(_commit(path, name, file))
                log(f"{error}; using the files fetched earlier: {pinned}")
                return Listing(pinned, None), file
        raise Unreachable(f"{error}; no earlier fetch of it is cached") from None
    for file in files:
        if repository.has(file):
            return repository, file
    raise ModelError(f"{name}: holds no {' and no '.join(files)}, so it is no model of slimvit or timm")


def fetch(repository: Listing, files: Mapping[str, int], revision: str | None = None) -> Path:
    """Fetch files of a model into the cache.

    Args:
        repository: The repository at one commit.
        files: Largest allowed sizes in bytes, by file name.
        revision: Branch or tag of the commit, which the cache stores for use without a network.

    Returns:
        The cache's snapshot folder with the files.

    Raises:
        ModelError: A file is missing or too large. Nothing is fetched then.
    """
    name = repository.name
    paths = {file: cached(name, file) for file in files}
    if any(path is None for path in paths.values()):
        sizes = repository.sizes if repository.sizes is not None else listing(name).sizes
        assert sizes is not None
        _check_sizes(name, files, sizes)
        _download(name, list(files), revision)
        paths = {file: cached(name, file) for file in files}
    for file, most in files.items():
        path = paths[file]
        if path is None:
            raise ModelError(
                f"{name}: the repository changed while {file} was fetched; try again, or name a commit after the @"
            )
        if path.stat().st_size > most:
            raise ModelError(f"{name}: {file} has {path.stat().st_size:,} bytes, more than the {most:,} allowed")
        folder = path.parent
    return folder


def _check_sizes(name: HubName, files: Mapping[str, int], sizes: Mapping[str, int | None]) -> None:
    for file, most in files.items():
        if name.path(file) not in sizes:
            raise ModelError(f"{name}: holds no {file}")
        size = sizes[name.path(file)]
        if size is None or size > most:
            count = "an unknown number of" if size is None else f"{size:,}"
            raise ModelError(f"{name}: {file} has {count} bytes, more than the {most:,} allowed; nothing was fetched")


def _download(name: HubName, files: Sequence[str], revision: str | None) -> None:
    from huggingface_hub import snapshot_download

    patterns = [name.path(file) for file in files]
    try:
        with hub_errors(str(name)), bars():
            snapshot_download(name.repo, revision=revision or name.revision, allow_patterns=patterns)
    except (RuntimeError, ValueError) as error:  # raised when the transfer of large files fails
        raise ModelError(f"{name}: could not be fetched: {line_of(error)}; try again") from None


def _commit(path: Path, name: HubName, file: str) -> str:
    """The commit of a cached file: the name of its snapshot folder."""
    return path.parents[name.path(file).count("/")].name

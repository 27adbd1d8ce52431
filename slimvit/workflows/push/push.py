"""slimvit.push: upload a run folder to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimvit.workflows.push.contents import PushOptions, UploadContents, upload_contents
from slimvit.workflows.push.upload import upload


def push(
    run: str | Path,
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    include: Sequence[str] = (),
    keep_card: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> dict[str, Any] | UploadContents:
    """Upload a run folder to a model repository on the Hub, in one commit, with a model card.

    Args:
        run: Folder of a finished run.
        repo: `user/name`; created if missing.
        private: Create the repository as a private one.
        license: License id of the Hub, such as `apache-2.0`.
        base_model: `user/name` of the model that was pruned; by default the one in the recipe.
        revision: Branch to push to, created if missing.
        message: Commit message.
        include: Further models of the run to upload: `best`, `original`.
        keep_card: Keep an existing README.md.
        force: Replace an earlier push.
        dry_run: Return the files and the card without contacting the Hub.

    Returns:
        `repo`, `model` (the name for `slimvit.load`), `url`, `commit`, `files`, `left_out`; with `dry_run` the
        contents.

    Raises:
        ModelError: Nobody is logged in, the repository may not be written to, or holds files that would be lost.
        StoreError: The folder holds no finished run.

    Example:
        >>> slimvit.push("runs/digits", "me/digits-half", license="apache-2.0", dry_run=True).card
    """
    options = PushOptions(repo, private, license, base_model, revision, message, tuple(include), keep_card, force)
    contents = upload_contents(Path(run), options)
    return contents if dry_run else upload(contents, options)

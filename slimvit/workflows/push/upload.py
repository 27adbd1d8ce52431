"""A packed run put on the Hugging Face Hub, in one commit, where nothing is lost that was not said to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimvit.io.hub.errors import LOGIN, bars, hub_errors
from slimvit.io.hub.name import PREFIX
from slimvit.io.saved_model import DESCRIPTION
from slimvit.report.text import listed
from slimvit.utils.errors import ModelError
from slimvit.utils.progress import log
from slimvit.workflows.push.contents import CARD, OURS, PushOptions, UploadContents

GITS = ".gitattributes"
"""What the Hub itself puts into every repository."""


def upload(parcel: UploadContents, options: PushOptions) -> dict[str, Any]:
    """Put a parcel on the Hub, in one commit, and say where it lies.

    Raises :class:`ModelError` before anything is sent where nobody is logged in, the repository may not be written to,
    or holds something that would be lost.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    _check_login(api, parcel.repo)
    there = _remote_state(api, parcel.repo, options.revision)
    _check_free(parcel.repo, there, options)
    with hub_errors(parcel.repo):
        if not there.exists:
            api.create_repo(parcel.repo, private=options.private or None, repo_type="model")
        if not there.branch_exists:
            api.create_branch(parcel.repo, branch=str(options.revision), exist_ok=True)
    commit = _commit(api, parcel, there, options)
    name = f"{PREFIX}{parcel.repo}" + (f"@{options.revision}" if options.revision else "")
    return {
        "repo": parcel.repo,
        "model": name,
        "url": str(commit.commit_url),
        "commit": commit.oid,
        "files": sorted(parcel.files),
        "left_out": list(parcel.left_out),
    }


@dataclass(frozen=True)
class RemoteState:
    """What a repository holds before a push."""

    exists: bool = False
    branch_exists: bool = True
    private: bool = False
    files: frozenset[str] = field(default_factory=frozenset)
    commit: str | None = None


def _check_login(api: Any, repo: str) -> None:
    """Somebody is logged in, whose token may write as far as it says."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ModelError(f"{repo}: nobody is logged in to the Hub; log in first: {LOGIN} to a token that may write")
    with hub_errors(repo):
        who = api.whoami()
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise ModelError(f"{repo}: your token may only read; log in with one that may write: {LOGIN}")


def _remote_state(api: Any, repo: str, revision: str | None) -> RemoteState:
    from huggingface_hub import errors

    with hub_errors(repo):
        try:
            info = api.model_info(repo, revision=revision)
        except errors.GatedRepoError:
            raise
        except errors.RevisionNotFoundError:
            info = api.model_info(repo)
            return RemoteState(True, False, bool(info.private), _files(info))
        except errors.RepositoryNotFoundError:
            return RemoteState(branch_exists=revision in (None, "main"))
    return RemoteState(True, True, bool(info.private), _files(info), info.sha)


def _files(info: Any) -> frozenset[str]:
    return frozenset(sibling.rfilename for sibling in info.siblings or ()) - {GITS}


def _check_free(repo: str, there: RemoteState, options: PushOptions) -> None:
    """Raise :class:`ModelError` where something would be lost that was not said to be."""
    if options.private and there.exists and not there.private:
        raise ModelError(f"{repo}: is public already; make it private on the Hub, or leave --private out")
    if not there.branch_exists:
        return
    others = "name another repository, or a branch with --revision"
    if DESCRIPTION in there.files:
        if not options.force:
            raise ModelError(f"{repo}: holds an earlier push; add --force to replace it, or {others}")
        return
    if foreign := sorted(there.files - {CARD, "LICENSE"}):
        raise ModelError(
            f"{repo}: holds files that slimvit did not write ({listed(foreign)}), so it is left alone; {others}"
        )
    if CARD in there.files and not (options.force or options.keep_card):
        raise ModelError(f"{repo}: holds a {CARD}; add --force to replace it, --keep-card to keep it, or {others}")


def _commit(api: Any, parcel: UploadContents, there: RemoteState, options: PushOptions) -> Any:
    """All files, the card, and an end to what an earlier push left that this one does not have: one commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    new: dict[str, Path | bytes] = dict(parcel.files)
    if not (options.keep_card and CARD in there.files):
        new[CARD] = parcel.card.encode()
    kept = {CARD} if options.keep_card else set()
    gone = sorted(there.files & OURS - new.keys() - kept)
    if staying := sorted(there.files - OURS):
        log(f"{parcel.repo}: {listed(staying)} stay there as they are")
    size = sum(file.stat().st_size for file in parcel.files.values())
    log(f"{parcel.repo}: sending {len(new)} files, {size / 2**20:.1f} MiB")
    changes: list[Any] = [CommitOperationAdd(path, source) for path, source in new.items()]
    changes += [CommitOperationDelete(path) for path in gone]
    message = options.message or "A slim model by slimvit"
    try:
        with hub_errors(parcel.repo), bars():
            return api.create_commit(
                parcel.repo, changes, commit_message=message, revision=options.revision, parent_commit=there.commit
            )
    except (ValueError, RuntimeError) as error:  # a card or an answer that huggingface_hub refuses, a broken upload
        reason = f"{error} {error.__cause__ or ''}"
        raise ModelError(f"{parcel.repo}: not pushed: {' '.join(reason.split())[:300]}") from None

"""Upload a run to the Hugging Face Hub in one commit; only `--force` replaces files there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimvit.io.hub.errors import LOGIN, bars, hub_errors
from slimvit.io.hub.name import PREFIX
from slimvit.io.slim_file import DESCRIPTION
from slimvit.report.text import listed
from slimvit.utils.errors import ModelError
from slimvit.utils.progress import log
from slimvit.workflows.push.contents import CARD, OURS, PushOptions, UploadContents

GITS = ".gitattributes"
"""File that the Hub writes into every repository."""


def upload(contents: UploadContents, options: PushOptions) -> dict[str, Any]:
    """Upload contents to the Hub in one commit, and return its address and files.

    Raises:
        ModelError: Nobody is logged in, the repository may not be written to, or holds files that would be lost;
            nothing is sent then.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    _check_login(api, contents.repo)
    remote = _remote_state(api, contents.repo, options.revision)
    _check_free(contents.repo, remote, options)
    with hub_errors(contents.repo):
        if not remote.exists:
            api.create_repo(contents.repo, private=options.private or None, repo_type="model")
        if not remote.branch_exists:
            api.create_branch(contents.repo, branch=str(options.revision), exist_ok=True)
    commit = _commit(api, contents, remote, options)
    name = f"{PREFIX}{contents.repo}" + (f"@{options.revision}" if options.revision else "")
    return {
        "repo": contents.repo,
        "model": name,
        "url": str(commit.commit_url),
        "commit": commit.oid,
        "files": sorted(contents.files),
        "left_out": list(contents.left_out),
    }


@dataclass(frozen=True)
class RemoteState:
    """A repository before a push."""

    exists: bool = False
    branch_exists: bool = True
    private: bool = False
    files: frozenset[str] = field(default_factory=frozenset)
    commit: str | None = None


def _check_login(api: Any, repo: str) -> None:
    """Raise `ModelError` if nobody is logged in, or the token is read-only."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ModelError(f"{repo}: nobody is logged in to the Hub; log in first: {LOGIN} to a token that may write")
    with hub_errors(repo):
        account = api.whoami()
    token = (account.get("auth") or {}).get("accessToken") or {}
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


def _check_free(repo: str, remote: RemoteState, options: PushOptions) -> None:
    """Raise `ModelError` if the push would replace files without `--force`, or publish what `--private` protects."""
    if options.private and remote.exists and not remote.private:
        raise ModelError(f"{repo}: is public already; make it private on the Hub, or leave --private out")
    if not remote.branch_exists:
        return
    others = "name another repository, or a branch with --revision"
    if DESCRIPTION in remote.files:
        if not options.force:
            raise ModelError(f"{repo}: holds an earlier push; add --force to replace it, or {others}")
        return
    if foreign := sorted(remote.files - {CARD, "LICENSE"}):
        raise ModelError(
            f"{repo}: holds files that slimvit did not write ({listed(foreign)}), so it is left alone; {others}"
        )
    if CARD in remote.files and not (options.force or options.keep_card):
        raise ModelError(f"{repo}: holds a {CARD}; add --force to replace it, --keep-card to keep it, or {others}")


def _commit(api: Any, contents: UploadContents, remote: RemoteState, options: PushOptions) -> Any:
    """Add the files and the card, and delete files of an earlier push that this one lacks, in one commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    new: dict[str, Path | bytes] = dict(contents.files)
    if not (options.keep_card and CARD in remote.files):
        new[CARD] = contents.card.encode()
    kept = {CARD} if options.keep_card else set()
    stale = sorted(remote.files & OURS - new.keys() - kept)
    if foreign := sorted(remote.files - OURS):
        log(f"{contents.repo}: {listed(foreign)} stay there as they are")
    size = sum(file.stat().st_size for file in contents.files.values())
    log(f"{contents.repo}: sending {len(new)} files, {size / 2**20:.1f} MiB")
    changes: list[Any] = [CommitOperationAdd(path, source) for path, source in new.items()]
    changes += [CommitOperationDelete(path) for path in stale]
    message = options.message or "A slim model by slimvit"
    try:
        with hub_errors(contents.repo), bars():
            return api.create_commit(
                contents.repo, changes, commit_message=message, revision=options.revision, parent_commit=remote.commit
            )
    except (ValueError, RuntimeError) as error:  # an invalid card or response, a broken upload
        reason = f"{error} {error.__cause__ or ''}"
        raise ModelError(f"{contents.repo}: not pushed: {' '.join(reason.split())[:300]}") from None

"""Errors of huggingface_hub as one line each, and its progress bars only on a terminal. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from slimvit.utils.errors import ModelError

LOGIN = "hf auth login, or set HF_TOKEN"
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2")
"""Packages whose errors mean that the Hub cannot be reached."""


class Unreachable(ModelError):
    """The Hub cannot be reached: no network, offline mode, or trouble of its own."""


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into one line about the repository `name`; other errors pass through."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise ModelError(f"{name}: is gated; ask for access on its page on the Hub, and log in: {LOGIN}") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{name}: the repository has no such branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        hint = f"check the name, or log in: {LOGIN}"
        raise ModelError(f"{name}: the Hub has no such model, or a private one that you may not see; {hint}") from None
    except errors.OfflineModeIsEnabled:
        raise Unreachable(
            f"{name}: the Hub is not asked in offline mode (HF_HUB_OFFLINE=1); unset that to ask it"
        ) from None
    except errors.HfHubHTTPError as error:
        raise _refused(name, error) from None
    except Exception as error:
        if (answer := _behind(error, errors.HfHubHTTPError)) is not None:
            raise _refused(name, answer) from None
        if (cause := _network_error(error)) is not None:
            raise Unreachable(f"{name}: the Hub cannot be reached ({cause}); check the network") from None
        if isinstance(error, OSError):  # the cache's disk
            raise ModelError(
                f"{name}: {line_of(error)}; look at the folder that HF_HOME names, or name another"
            ) from None
        raise


def _refused(name: str, error: Exception) -> ModelError:
    """The error for an answer of the Hub that is no success."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return ModelError(f"{name}: the Hub does not know your token (401); log in anew: {LOGIN} to a valid one")
    if status == 403:
        return ModelError(f"{name}: your token may not do that (403); use one that may write here: {LOGIN}")
    if status == 412:
        return ModelError(f"{name}: was changed by somebody else in the meantime (412); look at it, and push again")
    if status is not None and status >= 500:
        return Unreachable(f"{name}: the Hub has trouble ({status}); try again later")
    return ModelError(f"{name}: the Hub refused: {line_of(error)}")


def line_of(error: Exception) -> str:
    """Return the first line of an error that is not blank."""
    lines = [" ".join(text.split()) for text in str(error).splitlines() if text.strip()]
    return (lines or [type(error).__name__])[0][:300]


def _behind(error: BaseException | None, kind: type[Exception]) -> Exception | None:
    """The first error of a kind among the causes of this one."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _network_error(error: BaseException | None) -> str | None:
    """The name of the network error that is this one or among its causes."""
    from huggingface_hub import errors

    while error is not None:
        if type(error).__module__.split(".")[0] in NETWORK or isinstance(error, ConnectionError | TimeoutError):
            return type(error).__name__
        if isinstance(error, errors.LocalEntryNotFoundError | errors.FileMetadataError):
            return type(error).__name__
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def bars() -> Iterator[None]:
    """Switch the progress bars of huggingface_hub off unless stderr is a terminal."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hides = not (sys.stderr.isatty() or are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False)
    if hides:
        disable_progress_bars()
    try:
        yield
    finally:
        if hides:
            enable_progress_bars()

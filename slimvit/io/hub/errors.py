"""Errors of huggingface_hub turned into one line, and its progress bars limited to terminals. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from slimvit.utils.errors import ModelError

LOGIN = "hf auth login, or set HF_TOKEN"
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2")
"""Packages whose errors mean that the Hub cannot be reached."""


class Unreachable(ModelError):
    """The Hub cannot be reached: no network, offline mode, or a server error."""


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn errors of huggingface_hub in the block into a `ModelError` about the repository `name`."""
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
        raise _http_error(name, error) from None
    except Exception as error:
        if (http_error := _cause(error, errors.HfHubHTTPError)) is not None:
            raise _http_error(name, http_error) from None
        if (kind := _network_error(error)) is not None:
            raise Unreachable(f"{name}: the Hub cannot be reached ({kind}); check the network") from None
        if isinstance(error, OSError):  # of the cache folder
            raise ModelError(f"{name}: {line_of(error)}; check the cache folder HF_HOME, or set another") from None
        raise


def _http_error(name: str, error: Exception) -> ModelError:
    """The error for an HTTP error status of the Hub."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return ModelError(f"{name}: the Hub does not know your token (401); log in again: {LOGIN} to a valid one")
    if status == 403:
        return ModelError(f"{name}: your token lacks permission (403); use one with write access: {LOGIN}")
    if status == 412:
        return ModelError(f"{name}: somebody else changed it in the meantime (412); look at it, and push again")
    if status is not None and status >= 500:
        return Unreachable(f"{name}: the Hub has a server error ({status}); try again later")
    return ModelError(f"{name}: the Hub refused: {line_of(error)}")


def line_of(error: Exception) -> str:
    """Return the first non-blank line of an error."""
    lines = [" ".join(text.split()) for text in str(error).splitlines() if text.strip()]
    return (lines or [type(error).__name__])[0][:300]


def _cause(error: BaseException | None, kind: type[Exception]) -> Exception | None:
    """The first error of type `kind` in the chain of causes, starting with the error itself."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _network_error(error: BaseException | None) -> str | None:
    """Class name of the first network error in the chain of causes, starting with the error itself."""
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
    """Disable the progress bars of huggingface_hub in the block unless stderr is a terminal."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disables = not (
        sys.stderr.isatty() or are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False
    )
    if disables:
        disable_progress_bars()
    try:
        yield
    finally:
        if disables:
            enable_progress_bars()

"""What goes wrong while a model is fetched from the hub, as errors for the retry policy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from shared.config import Settings
from shared.errors import ModelNotFound, Permanent, Retryable, StepError, Unavailable
from workers.generation.remote.refusals import retry_after_s, shortened

PASSING = (408, 425, 429)
REFUSED = (401, 403)
ON_THE_WAY = (502, 503, 504)
"""What those answer who stand before a hub that does not."""


@contextmanager
def told(model: str, settings: Settings, *, is_known: bool) -> Iterator[None]:
    """Errors of huggingface_hub from inside come out as SluiceErrors. `is_known` tells whether the
    hub has been seen to have the model: then an outage passes; else there is no such model."""
    try:
        yield
    # What is no JSON where it should be, as of a gateway that answers for the hub, is a ValueError.
    except (OSError, httpx.HTTPError, XetDownloadError, ValueError) as error:
        raise _told(model, settings, error, is_known=is_known) from error


def unreachable(model: str, settings: Settings, why: str, *, is_known: bool) -> StepError:
    if not is_known:
        return ModelNotFound(
            f"There is no model {model!r} on this machine, and the hub cannot be reached "
            f"({shortened(why)}). Check the network of the workers (HTTPS_PROXY, HF_ENDPOINT), or "
            f"put the model into {settings.models_path / model} (SLUICE_MODELS_FOLDER)."
        )
    return Retryable(
        f"The hub cannot be reached for {model} ({shortened(why)}). Check the network of the "
        f"workers, or put the model into {settings.models_path / model} (SLUICE_MODELS_FOLDER)."
    )


def _told(model: str, settings: Settings, error: Exception, *, is_known: bool) -> StepError:
    # Where the hub does not answer, the library looks into its cache, and tells that it is not
    # there; the cause says why it had to look.
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, OfflineModeIsEnabled):
        return _missing(model, settings.models_path, "the hub was not asked: HF_HUB_OFFLINE is set")
    if isinstance(cause, GatedRepoError):
        return Permanent(
            f"{model} is gated: ask for access at https://huggingface.co/{model}, and set HF_TOKEN "
            "for the workers to a token of the account that has it."
        )
    hidden = "one that is private needs HF_TOKEN, set for the workers"
    if isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError):
        return _missing(model, settings.models_path, hidden)
    if isinstance(cause, HfHubHTTPError):
        response = cause.response
        if not is_known and (
            response.status_code == 404
            or (response.status_code == 401 and settings.hf_token is None)
        ):
            return _missing(model, settings.models_path, hidden)
        if (
            not is_known
            and response.status_code in ON_THE_WAY
            and not retry_after_s(response.headers.get("Retry-After"))
        ):
            answer = f"something on the way answers {response.status_code}"
            return unreachable(model, settings, answer, is_known=False)
        return _refused(model, cause)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return Permanent(
            f"{model} cannot be stored ({error.strerror}). Make room for the hub's cache, or set "
            "HF_HOME for the workers to a folder that has some."
        )
    why = str(cause or error) or type(error).__name__
    return unreachable(model, settings, why, is_known=is_known)


def _missing(model: str, folder: Path, hint: str) -> ModelNotFound:
    return ModelNotFound(
        f"There is no model {model!r} on this machine or the hub; {hint}. A model of your own goes "
        f"into {folder / model} (SLUICE_MODELS_FOLDER)."
    )


def _refused(model: str, error: HfHubHTTPError) -> StepError:
    status = error.response.status_code
    said = shortened(error.server_message or error.response.reason_phrase)
    if status in REFUSED:
        return Permanent(
            f"The hub refuses {model} with status {status}: {said} Set HF_TOKEN for the workers to "
            "a token that may read it."
        )
    told = f"The hub answered {status} for {model}: {said}"
    if status in PASSING or status >= 500:
        wait_s = retry_after_s(error.response.headers.get("Retry-After"))
        return Unavailable(told, retry_after_s=wait_s)
    return Permanent(told)

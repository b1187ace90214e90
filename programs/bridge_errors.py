"""DSPy's errors and ours, both ways. Imported by bridge.py alone, for it imports dspy at its top."""

from collections.abc import Callable, Mapping
from typing import Any

from dspy import lm15
from dspy.clients.engines.litellm_errors import to_lm15_error
from dspy.clients.errors import wrap_error
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMInvalidRequestError,
    LMRateLimitError,
    LMStreamAssemblyError,
    LMTimeoutError,
    LMTransportError,
    LMUnexpectedError,
    LMUnsupportedFeatureError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)
from dspy.utils.exceptions import (
    LMError as DSPyLMError,
)

from .lm import Cause, LMError

LM15_ERRORS: Mapping[Cause, Callable[..., Exception]] = {
    "rate_limited": lm15.RateLimitError,
    "server": lm15.ServerError,
    "timeout": lm15.TimeoutError,
    "connection": lm15.TransportError,
    "auth": lm15.AuthError,
    "unknown_model": lm15.UnsupportedModelError,
    "context_overflow": lm15.ContextLengthError,
    "bad_request": lm15.InvalidRequestError,
    "bad_reply": lm15.ServerError,
}

CAUSES: tuple[tuple[type[Exception], Cause], ...] = (
    (ContextWindowExceededError, "context_overflow"),
    (LMAuthError, "auth"),
    (LMBillingError, "auth"),
    (LMConfigurationError, "auth"),
    (LMRateLimitError, "rate_limited"),
    (LMUnsupportedModelError, "unknown_model"),
    (LMInvalidRequestError, "bad_request"),
    (LMUnsupportedFeatureError, "bad_request"),
    (LMTimeoutError, "timeout"),
    (LMStreamAssemblyError, "bad_reply"),
    (LMTransportError, "connection"),
)
"""DSPy's public errors and our causes; specific classes come before their parents, what isn't here is `server`."""


def to_lm15(error: LMError, model: str) -> Exception:
    """Return the error of DSPy's engine interface that says what ours says."""
    kind = LM15_ERRORS[error.cause]
    # A transport error knows no HTTP status.
    details = {} if kind is lm15.TransportError else {"status": error.status, "retry_after": error.retry_after}
    return kind(str(error), **details)


def public(error: Exception, model: str) -> Any:
    """Return an exception, a provider's client's included, as DSPy's public error."""
    if isinstance(error, DSPyLMError):
        return error
    if isinstance(error, TimeoutError):
        return LMTimeoutError(str(error), model=model)
    if isinstance(error, ConnectionError):
        return LMTransportError(str(error), model=model)
    public = wrap_error(to_lm15_error(error, model=model), model=model)
    if isinstance(public, DSPyLMError) and not isinstance(public, LMUnexpectedError):
        return public
    return LMUnexpectedError(f"{type(error).__name__}: {error}", model=model)


def from_dspy(error: DSPyLMError, model: str) -> LMError:
    """Return one of DSPy's errors as ours, with its cause."""
    cause: Cause = next((cause for kind, cause in CAUSES if isinstance(error, kind)), "server")
    if cause == "connection" and _timed_out(error):
        cause = "timeout"
    text = (error.message or str(error)).strip().splitlines()
    return LMError(
        f"{model}: {text[0] if text else type(error).__name__}",
        cause=cause,
        retryable=is_retryable_lm_error(error),
        retry_after=error.retry_after,
        status=error.status,
    )


def _timed_out(error: BaseException) -> bool:
    """Say whether a time-out lies below an error of the transport; each HTTP client has a class of its own for it."""
    below = error.__cause__ or error.__context__
    return below is not None and ("Timeout" in type(below).__name__ or _timed_out(below))

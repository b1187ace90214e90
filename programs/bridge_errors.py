"""DSPy's errors and ours, both ways; the tables name DSPy's classes, which are looked up when there is an error."""

from collections.abc import Mapping
from typing import Any

from .lm import Cause, LMError

LM15_ERRORS: Mapping[Cause, str] = {
    "rate_limited": "RateLimitError",
    "server": "ServerError",
    "timeout": "TimeoutError",
    "connection": "TransportError",
    "auth": "AuthError",
    "unknown_model": "UnsupportedModelError",
    "context_overflow": "ContextLengthError",
    "bad_request": "InvalidRequestError",
    "bad_reply": "ServerError",
}

CAUSES: tuple[tuple[str, Cause], ...] = (
    ("ContextWindowExceededError", "context_overflow"),
    ("LMAuthError", "auth"),
    ("LMBillingError", "auth"),
    ("LMConfigurationError", "auth"),
    ("LMRateLimitError", "rate_limited"),
    ("LMUnsupportedModelError", "unknown_model"),
    ("LMInvalidRequestError", "bad_request"),
    ("LMUnsupportedFeatureError", "bad_request"),
    ("LMTimeoutError", "timeout"),
    ("LMStreamAssemblyError", "bad_reply"),
    ("LMTransportError", "connection"),
)
"""DSPy's public errors and our causes; specific classes come before their parents, what isn't here is `server`."""


def to_lm15(error: LMError, model: str) -> Exception:
    """Return the error of DSPy's engine interface that says what ours says."""
    from dspy import lm15

    kind: Any = getattr(lm15, LM15_ERRORS[error.cause])
    # A transport error knows no HTTP status.
    details = {} if kind is lm15.TransportError else {"status": error.status, "retry_after": error.retry_after}
    found: Exception = kind(str(error), **details)
    return found


def public(error: Exception, model: str) -> Any:
    """Return an exception, a provider's client's included, as DSPy's public error."""
    from dspy.clients.engines.litellm_errors import to_lm15_error
    from dspy.clients.errors import wrap_error
    from dspy.utils import exceptions

    if isinstance(error, exceptions.LMError):
        return error
    if isinstance(error, TimeoutError):
        return exceptions.LMTimeoutError(str(error), model=model)
    if isinstance(error, ConnectionError):
        return exceptions.LMTransportError(str(error), model=model)
    public = wrap_error(to_lm15_error(error, model=model), model=model)
    if isinstance(public, exceptions.LMError) and not isinstance(public, exceptions.LMUnexpectedError):
        return public
    return exceptions.LMUnexpectedError(f"{type(error).__name__}: {error}", model=model)


def from_dspy(error: Any, model: str) -> LMError:
    """Return one of DSPy's errors as ours, with its cause."""
    from dspy.utils import exceptions

    cause: Cause = next((cause for name, cause in CAUSES if isinstance(error, getattr(exceptions, name))), "server")
    if cause == "connection" and _timed_out(error):
        cause = "timeout"
    text = (error.message or str(error)).strip().splitlines()
    said = text[0] if text else type(error).__name__
    if cause == "auth":
        # Providers repeat the key that they refuse.
        said = "the provider refuses the key; set its environment variable, or pass api_key to dspy.LM."
    return LMError(
        f"{model}: {said}",
        cause=cause,
        retryable=exceptions.is_retryable_lm_error(error),
        retry_after=error.retry_after,
        status=error.status,
    )


def _timed_out(error: BaseException) -> bool:
    """Say whether a time-out lies below an error of the transport; each HTTP client has a class of its own for it."""
    below = error.__cause__ or error.__context__
    return below is not None and ("Timeout" in type(below).__name__ or _timed_out(below))

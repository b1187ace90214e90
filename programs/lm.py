"""The protocol of a language model as data: Request in, Reply out, LMError with a cause when there is none.

An LM is whatever has the members of `LM`; vitrify has three: the client in openai.py, the offline learner in
embedded.py and the bridge to dspy's own in bridge.py.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol, Self, cast, get_args

from ..signatures.canonical import JsonValue, canonical_json, digest
from ..signatures.errors import WorkError
from ..signatures.prompt import Capabilities, Messages

__all__ = ["LM", "Capabilities", "Cause", "LMError", "Reply", "Request", "Retry", "Usage", "with_retries"]

Cause = Literal[
    "rate_limited",
    "server",
    "timeout",
    "connection",
    "auth",
    "unknown_model",
    "context_overflow",
    "bad_request",
    "bad_reply",
]
"""Why a call failed; the first four and `bad_reply` may go away by themselves, the others won't."""

RETRYABLE: Final[frozenset[Cause]] = frozenset({"rate_limited", "server", "timeout", "connection", "bad_reply"})


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One call to a language model, as data; two requests are equal when their keys are.

    Attributes:
        model: the model's name as the user wrote it, provider prefix included.
        messages: what is said, in the wire's own form: `{"role": ..., "content": ...}`.
        params: what else goes on the wire: temperature, max_tokens, response_format, stop, tools, ...
        replicate: tells samples of one request apart (DSPy's rollout_id); identity only, never on the wire.
    """

    model: str
    messages: tuple[Mapping[str, JsonValue], ...]
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    replicate: int | None = None
    _key: str | None = field(default=None, init=False, repr=False)

    @property
    def key(self) -> str:
        """Return the sha256 (hex) of the canonical JSON of model, messages, params and replicate."""
        if self._key is None:
            # Hashing costs about as much as sending, so it is done once, and only for who asks.
            object.__setattr__(self, "_key", self._digest())
        return cast(str, self._key)

    def _digest(self) -> str:
        rest: dict[str, JsonValue] = {"model": self.model, "params": dict(self.params), "replicate": self.replicate}
        if type(self.messages) is Messages:
            text = f'{{"messages":{self.messages.canonical},{canonical_json(rest)[1:]}'.encode()
            return hashlib.sha256(text).hexdigest()
        if all(type(message) is dict and _is_text(message) for message in self.messages):
            # For texts, JSON's own encoder writes canonical JSON, and in a tenth of the time.
            try:
                text = f'{{"messages":{_ENCODER.encode(self.messages)},{canonical_json(rest)[1:]}'.encode()
                return hashlib.sha256(text).hexdigest()
            except UnicodeEncodeError:
                pass  # a lone surrogate, which is refused below
        return digest({"messages": [dict(message) for message in self.messages], **rest})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _is_text(message: Mapping[str, JsonValue]) -> bool:
    """Say whether a message is a role and a text, as nearly all are."""
    return len(message) == 2 and type(message.get("role")) is str and type(message.get("content")) is str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call or, added up, of many.

    Attributes:
        prompt_tokens: tokens read, cached ones included.
        completion_tokens: tokens written, hidden reasoning included.
        cached_tokens: those of `prompt_tokens` that the server had in its prompt cache.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a language model answered.

    Attributes:
        text: the message's content; None where the model only called tools.
        usage: tokens, as the server counted them.
        model: the model that the server says answered.
        finish_reason: "stop", "length", "tool_calls", ... as the server says.
        tool_calls: the calls in the wire's own form.
        reasoning: the reasoning text, where the server shows it.
        attempts: how often the server was asked until it answered; physical, so no part of `to_json()`'s identity.
    """

    text: str | None
    usage: Usage
    model: str
    finish_reason: str = "stop"
    tool_calls: tuple[JsonValue, ...] = ()
    reasoning: str | None = None
    attempts: int = 1

    def to_json(self) -> dict[str, JsonValue]:
        """Return the reply as plain JSON data; `from_json` gives the same reply back."""
        return {
            "text": self.text,
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "cached_tokens": self.usage.cached_tokens,
            },
            "model": self.model,
            "finish_reason": self.finish_reason,
            "tool_calls": list(self.tool_calls),
            "reasoning": self.reasoning,
            "attempts": self.attempts,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue]) -> Self:
        """Return the reply that `to_json` wrote; KeyError or TypeError where `data` is something else."""
        fields = cast(dict[str, Any], dict(data))
        fields["usage"] = Usage(**fields["usage"])
        fields["tool_calls"] = tuple(fields["tool_calls"])
        return cls(**fields)


class LM(Protocol):
    """A language model that answers requests, from any thread and from any event loop."""

    @property
    def name(self) -> str:
        """The name the user gave, provider prefix included; goes into requests and artifacts."""
        ...

    @property
    def endpoint(self) -> str:
        """Which server answers: tells caches apart, and is never written into an artifact."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do, which decides what a prompt may ask for."""
        ...

    def complete(self, request: Request) -> Reply:
        """Return the reply, or raise LMError."""
        ...

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply, or raise LMError."""
        ...

    def close(self) -> None:
        """Let go of connections and threads; may be called more than once."""
        ...


class LMError(WorkError):
    """A call to a language model failed.

    Attributes:
        cause: one of `Cause`.
        retryable: whether the same call may succeed later.
        retry_after: seconds the server asks to wait, where it does.
        status: the HTTP status, where there was one.
        attempts: how often the server was asked.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: Cause,
        retryable: bool | None = None,
        retry_after: float | None = None,
        status: int | None = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(message)
        if cause not in get_args(Cause):
            raise ValueError(f"`cause` must be one of {', '.join(get_args(Cause))}, but got {cause!r}")
        self.cause: Cause = cause
        self.retryable = cause in RETRYABLE if retryable is None else retryable
        self.retry_after = retry_after
        self.status = status
        self.attempts = attempts

    def with_attempts(self, attempts: int) -> "LMError":
        """Return the same error, after `attempts` attempts, which its message then says."""
        message = self.args[0]
        if attempts > 1:
            message = f"{message} (tried {attempts} times)"
        return LMError(
            message,
            cause=self.cause,
            retryable=self.retryable,
            retry_after=self.retry_after,
            status=self.status,
            attempts=attempts,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException's own way back loses keyword arguments, and errors travel between processes.
        return (_rebuilt, (self.args[0], self.cause, self.retryable, self.retry_after, self.status, self.attempts))


def _rebuilt(
    message: str, cause: Cause, retryable: bool, retry_after: float | None, status: int | None, attempts: int
) -> LMError:
    """Return the LMError that was pickled."""
    return LMError(message, cause=cause, retryable=retryable, retry_after=retry_after, status=status, attempts=attempts)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently a failed call is repeated: exponential back-off with full jitter.

    Attributes:
        attempts: the most attempts in all, the first included; at least 1.
        base_delay: seconds before the second attempt, at most; doubles each time.
        cap: the longest back-off in seconds.
        patience: the longest Retry-After in seconds that is waited for here; a longer one is raised at once, for
            the caller to pause on.
    """

    attempts: int = 5
    base_delay: float = 0.5
    cap: float = 20.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"Retry: `attempts >= 1` must hold, but got attempts={self.attempts}")
        if min(self.base_delay, self.cap, self.patience) < 0:
            raise ValueError(
                "Retry: `base_delay, cap, patience >= 0` must hold, but got "
                f"base_delay={self.base_delay}, cap={self.cap}, patience={self.patience}"
            )

    def delay(self, attempt: int, error: LMError, uniform: float) -> float | None:
        """Return the seconds to wait after failed attempt number `attempt` (from 1), or None to give up.

        `uniform` is a random number in [0, 1). The server's Retry-After is a lower bound; jitter is added to it, so
        that clients that were refused together don't come back together.
        """
        if attempt >= self.attempts or not error.retryable:
            return None
        backoff = min(self.cap, self.base_delay * 2.0 ** min(attempt - 1, 32))
        if error.retry_after is None:
            # Half of it is certain: full jitter's near-zero waits would spend attempts on a server that is down.
            return backoff * (0.5 + 0.5 * uniform)
        if error.retry_after > self.patience:
            return None
        return error.retry_after + 0.25 * backoff * uniform


async def with_retries(
    attempt: Callable[[], Awaitable[Reply]],
    retry: Retry,
    *,
    sleep: Callable[[float], Awaitable[None]],
    uniform: Callable[[], float],
) -> Reply:
    """Return the first reply that `attempt` gives, its `attempts` counted, or raise its last LMError."""
    number = 1
    while True:
        try:
            reply = await attempt()
        except LMError as error:
            delay = retry.delay(number, error, uniform())
            if delay is None:
                raise error.with_attempts(number) from error.__cause__
            await sleep(delay)
            number += 1
        else:
            return reply if number == 1 else replace(reply, attempts=number)

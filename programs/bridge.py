"""The bridge between DSPy's language models and ours: any of theirs as an LM, any of ours as a dspy.LM.

Like planned.py, this module imports dspy at its top and is itself imported only inside functions.
"""

import contextlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, cast

import dspy
from dspy import lm15
from dspy._vendor.lm15.providers.openai_chat import OpenAIChatLM, response_from_openai_chat
from dspy.clients.errors import wrap_error
from dspy.clients.legacy_outputs import plain
from dspy.dsp.utils.settings import settings
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMInvalidRequestError,
    LMRateLimitError,
    LMTimeoutError,
    LMTransportError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)
from dspy.utils.exceptions import (
    LMError as DSPyLMError,
)
from dspy.utils.usage_tracker import track_usage

from ..signatures.canonical import JsonValue
from ..signatures.prompt import Capabilities
from .lm import LM, Cause, LMError, Reply, Request, Usage
from .program import DECODING

_replicate: ContextVar[int | None] = ContextVar("vitrify_replicate", default=None)
"""The rollout_id of the call in progress: part of a request's identity that DSPy's engine interface drops."""

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
    (LMTimeoutError, "timeout"),
    (LMTransportError, "connection"),
)
"""DSPy's public errors and our causes; specific classes come before their parents, what isn't here is `server`."""


class EngineLM(dspy.LM):
    """One of our language models as a real `dspy.LM`, so that every DSPy module can use it.

    Attributes:
        target: The LM that answers.
    """

    def __init__(self, target: LM, **decoding: Any) -> None:
        engine = _Engine(target)
        super().__init__(
            target.name, engine=engine, async_engine=_AsyncEngine(engine), cache=False, num_retries=0, **decoding
        )
        self.target = target

    def __deepcopy__(self, memo: dict[int, Any]) -> "EngineLM":
        return cast("EngineLM", self.copy())

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self.target.capabilities

    def direct(self) -> bool:
        """Say whether nobody listens to DSPy's own call path now, so that it may be skipped."""
        return not self.callbacks and settings.disable_history and settings.send_stream is None

    def ask(self, messages: list[dict[str, Any]], params: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return the reply's text and what else it holds, without DSPy's call path."""
        try:
            reply = self.target.complete(self._request(messages, params))
        except LMError as error:
            raise wrap_error(to_lm15(error, self.model), model=self.model) from error
        return self._received(reply)

    async def aask(
        self, messages: list[dict[str, Any]], params: Mapping[str, Any]
    ) -> tuple[str | None, dict[str, Any]]:
        """Return what `ask` returns, asynchronously."""
        try:
            reply = await self.target.acomplete(self._request(messages, params))
        except LMError as error:
            raise wrap_error(to_lm15(error, self.model), model=self.model) from error
        return self._received(reply)

    def _request(self, messages: list[dict[str, Any]], params: Mapping[str, Any]) -> Request:
        merged = {**self.kwargs, **params}
        replicate = merged.pop("rollout_id", None)
        merged.pop("n", None)
        merged.pop("num_generations", None)
        wire = {key: value for key, value in merged.items() if value is not None}
        return Request(self.model, tuple(messages), wire, replicate)

    def _received(self, reply: Reply) -> tuple[str | None, dict[str, Any]]:
        tracker = settings.usage_tracker
        if tracker is not None:
            tracker.add_usage(self.model, usage_of(reply))
        return reply.text, {} if reply.text else reply.to_json()

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Answer as `dspy.LM` does, through this engine."""
        with self._replicate_of(kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Answer as `dspy.LM` does, asynchronously."""
        with self._replicate_of(kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)

    @contextlib.contextmanager
    def _replicate_of(self, kwargs: Mapping[str, Any]) -> Any:
        token = _replicate.set(kwargs.get("rollout_id", self.kwargs.get("rollout_id")))
        try:
            yield
        finally:
            _replicate.reset(token)


class _Engine:
    """DSPy's engine interface over one of our LMs."""

    def __init__(self, target: LM) -> None:
        self.target = target
        able = target.capabilities
        self.supports_function_calling = able.function_calling
        self.supports_reasoning = able.reasoning
        self.supports_response_schema = able.response_schema
        named = {"temperature", "max_tokens", "top_p", "stop"}
        self.supported_params = frozenset(named | ({"response_format"} if able.response_format else set()))

    def complete(self, request: Any) -> Any:
        ours = self.translate(request)
        try:
            return from_reply(self.target.complete(ours), ours.model)
        except LMError as error:
            raise to_lm15(error, ours.model) from error

    def stream(self, request: Any) -> Any:
        return lm15.response_to_events(self.complete(request))

    def close(self) -> None:
        """Do nothing: DSPy borrows the engine."""

    def translate(self, request: Any) -> Request:
        body = dict(OpenAIChatLM(api_key="unused")._payload(request, False))
        messages = tuple(body.pop("messages"))
        model = body.pop("model")
        # One spelling for one parameter: the client maps it back for the models that want the longer name.
        if "max_completion_tokens" in body:
            body["max_tokens"] = body.pop("max_completion_tokens")
        return Request(model, messages, body, _replicate.get())


class _AsyncEngine:
    """The asynchronous side of `_Engine`."""

    def __init__(self, sync: _Engine) -> None:
        self.sync = sync

    async def complete(self, request: Any) -> Any:
        ours = self.sync.translate(request)
        try:
            return from_reply(await self.sync.target.acomplete(ours), ours.model)
        except LMError as error:
            raise to_lm15(error, ours.model) from error

    async def stream(self, request: Any) -> Any:
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Do nothing: DSPy borrows the engine."""


def usage_of(reply: Reply) -> dict[str, Any]:
    """Return a reply's usage in the shape that DSPy's usage tracker adds up."""
    usage = reply.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def from_reply(reply: Reply, model: str) -> Any:
    """Return a reply as DSPy's `lm15.Response`."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.tool_calls:
        message["tool_calls"] = list(reply.tool_calls)
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    choice = {"index": 0, "finish_reason": reply.finish_reason, "message": message}
    body = {"id": "vitrify", "model": reply.model, "choices": [choice], "usage": usage_of(reply)}
    return response_from_openai_chat(body, model=model)


def to_lm15(error: LMError, model: str) -> Exception:
    """Return the error of DSPy's engine interface that says what ours says."""
    kind = LM15_ERRORS[error.cause]
    # A transport error knows no HTTP status.
    details = {} if kind is lm15.TransportError else {"status": error.status, "retry_after": error.retry_after}
    return kind(str(error), **details)


class DspyLM:
    """Any `dspy.LM` or `dspy.BaseLM` as one of our language models.

    DSPy's own cache and retries are switched off: the ledger remembers, and the scheduler retries.
    """

    def __init__(self, lm: dspy.BaseLM) -> None:
        self._lm = lm.copy(cache=False)
        if hasattr(self._lm, "num_retries"):
            self._lm.num_retries = 0
        self.name: str = lm.model
        # Which server answers: told apart by the address, never by a key.
        base = lm.kwargs.get("api_base") or lm.kwargs.get("base_url") or ""
        self.endpoint: str = f"dspy:{type(lm).__name__}:{base}"

    @property
    def decoding(self) -> dict[str, JsonValue]:
        """The sampling parameters the user gave to the LM; secrets and addresses are left out by listing what may."""
        return {key: value for key, value in self._lm.kwargs.items() if key in DECODING and value is not None}

    @property
    def capabilities(self) -> Capabilities:
        """What DSPy says that the model can do."""
        return Capabilities.of(self._lm)

    def complete(self, request: Request) -> Reply:
        """Return the reply to one request, or raise LMError."""
        with dspy.context(disable_history=True, send_stream=None, callbacks=[]), track_usage() as usage:
            try:
                outputs = self._lm(messages=[dict(m) for m in request.messages], **self._params(request))
            except DSPyLMError as error:
                raise from_dspy(error, self.name) from error
        return self._reply(outputs, usage.get_total_tokens())

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply to one request, asynchronously."""
        with dspy.context(disable_history=True, send_stream=None, callbacks=[]), track_usage() as usage:
            try:
                outputs = await self._lm.acall(messages=[dict(m) for m in request.messages], **self._params(request))
            except DSPyLMError as error:
                raise from_dspy(error, self.name) from error
        return self._reply(outputs, usage.get_total_tokens())

    def _params(self, request: Request) -> dict[str, Any]:
        params = dict(request.params)
        if request.replicate is not None:
            params["rollout_id"] = request.replicate
        return params

    def _reply(self, outputs: list[Any], used: Mapping[str, Any]) -> Reply:
        first = plain(outputs[0])
        output = first if isinstance(first, dict) else {"text": first}
        tokens: Mapping[str, Any] = next(iter(used.values()), {})
        details = tokens.get("prompt_tokens_details") or {}
        usage = Usage(
            int(tokens.get("prompt_tokens") or 0),
            int(tokens.get("completion_tokens") or 0),
            int(details.get("cached_tokens") or 0),
        )
        calls = tuple(output.get("tool_calls") or ())
        return Reply(output.get("text"), usage, self.name, "stop", calls, output.get("reasoning_content"))

    def close(self) -> None:
        """Close what DSPy opened."""
        close = getattr(self._lm, "close", None)
        if close is not None:
            close()


def from_dspy(error: DSPyLMError, model: str) -> LMError:
    """Return one of DSPy's errors as ours, with its cause."""
    cause: Cause = next((cause for kind, cause in CAUSES if isinstance(error, kind)), "server")
    text = (error.message or str(error)).strip().splitlines()
    return LMError(
        f"{model}: {text[0] if text else type(error).__name__}",
        cause=cause,
        retryable=is_retryable_lm_error(error),
        retry_after=error.retry_after,
        status=error.status,
    )

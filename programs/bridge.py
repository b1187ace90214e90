"""The bridge between DSPy's language models and ours: any of theirs as an LM, any of ours as a dspy.LM.

Like planned.py, this module imports dspy at its top and is itself imported only inside functions.
"""

import contextlib
import functools
import hashlib
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final, cast
from urllib.parse import urlsplit

# Otherwise DSPy fetches a price table from the network at its first call.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dspy
from dspy import lm15
from dspy._vendor.lm15.providers.openai_chat import OpenAIChatLM, response_from_openai_chat
from dspy.clients._deprecation import adapter_message_call
from dspy.clients.errors import wrap_error
from dspy.clients.legacy_outputs import plain
from dspy.dsp.utils.settings import settings

from ..signatures.canonical import JsonValue
from ..signatures.prompt import Capabilities
from .bridge_errors import from_dspy as from_dspy
from .bridge_errors import public, to_lm15
from .lm import LM, LMError, Reply, Request, Usage
from .program import DECODING

DIRECT: Final[frozenset[str]] = frozenset(DECODING | {"num_generations"})
"""What an LM's settings and a call's config may hold for DSPy's call path to be skipped."""

UNCARRIED: Final[tuple[str, ...]] = ("top_k", "min_p")
"""Sampling parameters that DSPy's engine interface drops or refuses, and OpenAI-compatible servers understand."""


ANSWERS: Final[frozenset[str]] = frozenset({"choices", "content", "candidates", "output"})
"""Where providers put an answer. DSPy reads a body without any of them as an answer without a word."""


@dataclass
class _Call:
    """One call of an EngineLM: what DSPy's engine interface drops on the way to the engine.

    Attributes:
        replicate: The rollout_id, which is part of a request's identity.
        decoding: The sampling parameters as they were given.
        samples: How many replies to this call the engine has given: with `n`, it is asked n times.
    """

    replicate: int | None
    decoding: Mapping[str, Any]
    samples: int = 0

    def next_replicate(self) -> int | None:
        """Return what tells the next of this call's samples apart; the first is the plain request."""
        index, self.samples = self.samples, self.samples + 1
        if index == 0:
            return self.replicate
        # Far from any rollout_id that counts up, and an exact number in JSON.
        return int.from_bytes(hashlib.sha256(f"{self.replicate}/{index}".encode()).digest()[:6], "big")


_call: ContextVar[_Call | None] = ContextVar("vitrify_call", default=None)
_entry: ContextVar[dict[str, Any] | None] = ContextVar("vitrify_entry", default=None)


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
        self._cache_responses = False

    def _get_initial_kwargs(self, **decoding: Any) -> dict[str, Any]:
        # One spelling for one parameter, and no policy for families of models: the client knows what they want.
        spelled = one_spelling({key: value for key, value in decoding.items() if value is not None})
        return {"temperature": None, "max_tokens": None, **spelled}

    def _warn_zero_temp_rollout(self, temperature: Any, rollout_id: Any) -> None:
        """Say nothing: here a rollout_id tells requests apart at any temperature."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "EngineLM":
        return cast("EngineLM", self.copy())

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self.target.capabilities

    def direct(self, config: Mapping[str, Any]) -> bool:
        """Say whether DSPy's own call path may be skipped: nobody listens there, and the config needs nothing of it."""
        return bool(
            settings.disable_history
            and settings.send_stream is None
            and not self.callbacks
            and DIRECT.issuperset(config)
            and DIRECT.issuperset(self.kwargs)
        )

    def plain(self, config: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        """Say what `direct` says, under the settings `now` (nothing streams), and that one reply is asked for."""
        given = self.kwargs
        return bool(
            now["disable_history"]
            and not self.callbacks
            and DIRECT.issuperset(config)
            and DIRECT.issuperset(given)
            and (config.get("n") or given.get("n") or given.get("num_generations") or 1) == 1
        )

    def ask(self, messages: Sequence[dict[str, Any]], params: Mapping[str, Any]) -> str | None:
        """Return the reply's text, without DSPy's call path."""
        try:
            reply = self.target.complete(self._request(messages, params))
        except LMError as error:
            raise wrap_error(to_lm15(error, self.model), model=self.model) from error
        return self._received(reply)

    async def aask(self, messages: Sequence[dict[str, Any]], params: Mapping[str, Any]) -> str | None:
        """Return what `ask` returns, asynchronously."""
        try:
            reply = await self.target.acomplete(self._request(messages, params))
        except LMError as error:
            raise wrap_error(to_lm15(error, self.model), model=self.model) from error
        return self._received(reply)

    def _request(self, messages: Sequence[dict[str, Any]], params: Mapping[str, Any]) -> Request:
        merged = {**self.kwargs, **one_spelling(params)}
        replicate = merged.pop("rollout_id", None)
        given = messages if isinstance(messages, tuple) else tuple(messages)
        return Request(self.model, given, _on_the_wire(merged), replicate)

    def _received(self, reply: Reply) -> str | None:
        tracker = settings.usage_tracker
        if tracker is not None:
            tracker.add_usage(self.model, usage_of(reply))
        return reply.text

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Answer as `dspy.LM` does, through this engine."""
        with self._noted(one_spelling(kwargs)) as carried:
            return super().__call__(prompt, messages=messages, **carried)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Answer as `dspy.LM` does, asynchronously."""
        with self._noted(one_spelling(kwargs)) as carried:
            return await super().acall(prompt, messages=messages, **carried)

    @contextlib.contextmanager
    def _noted(self, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Note what DSPy's engine interface drops, and yield the keyword arguments that it carries."""
        merged = {**self.kwargs, **kwargs}
        decoding = {key: value for key, value in merged.items() if key in DECODING and key != "rollout_id"}
        token = _call.set(_Call(merged.get("rollout_id"), _on_the_wire(decoding)))
        try:
            yield {**kwargs, **{key: None for key in UNCARRIED if merged.get(key) is not None}}
        finally:
            _call.reset(token)


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
        return in_pieces(lm15.response_to_events(self.complete(request)))

    def close(self) -> None:
        """Do nothing: DSPy borrows the engine."""

    def translate(self, request: Any) -> Request:
        body = dict(OpenAIChatLM(api_key="unused")._payload(request, False))
        messages = tuple(body.pop("messages"))
        model = body.pop("model")
        call = _call.get()
        if call is None:
            return Request(model, messages, one_spelling(body))
        return Request(model, messages, {**one_spelling(body), **call.decoding}, call.next_replicate())


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
        for event in in_pieces(lm15.response_to_events(await self.complete(request))):
            yield event

    async def aclose(self) -> None:
        """Do nothing: DSPy borrows the engine."""


def in_pieces(events: Iterable[Any]) -> Iterator[Any]:
    """Yield the events with texts cut into words: DSPy's stream listeners look for a field's marker piece by piece."""
    for event in events:
        delta = getattr(event, "delta", None)
        if not isinstance(delta, lm15.TextDelta):
            yield event
            continue
        for piece in re.findall(r"\s*\S+|\s+", delta.text) or [delta.text]:
            yield replace(event, delta=replace(delta, text=piece))


def one_spelling(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with `max_completion_tokens` named `max_tokens`; clients map it back where it is wanted."""
    spelled = dict(params)
    if "max_completion_tokens" in spelled:
        longer = spelled.pop("max_completion_tokens")
        if longer is not None:
            spelled["max_tokens"] = longer
    return spelled


def _on_the_wire(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a request carries: those that are set; how many replies is the caller's business."""
    return {key: value for key, value in params.items() if value is not None and key not in ("n", "num_generations")}


def usage_of(reply: Reply) -> dict[str, Any]:
    """Return a reply's usage in the shape that DSPy's usage tracker adds up."""
    usage = reply.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens} if usage.cached_tokens else None,
        "completion_tokens_details": None,
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


class DspyLM:
    """Any `dspy.LM` or `dspy.BaseLM` as one of our language models.

    DSPy's own cache and retries are switched off: the ledger remembers, and the scheduler retries.
    """

    def __init__(self, lm: dspy.BaseLM) -> None:
        # A request is answered once, whatever `n` the user gave to the LM.
        self._lm = lm.copy(cache=False, n=None, num_generations=None)
        if hasattr(self._lm, "num_retries"):
            self._lm.num_retries = 0
        # DSPy describes each call there, in what it would add to the history: usage, who answered, and why it ended.
        self._lm.update_history = _keep
        self.name: str = lm.model
        # Which server answers: told apart by the address, never by a key.
        base = lm.kwargs.get("api_base") or lm.kwargs.get("base_url") or ""
        self.endpoint: str = f"dspy:{type(lm).__name__}:{base}"
        given = one_spelling({**lm.kwargs})
        self._decoding = {key: value for key, value in given.items() if key in DECODING and value is not None}

    @property
    def decoding(self) -> dict[str, JsonValue]:
        """The sampling parameters the user gave to the LM; secrets and addresses are left out by listing what may."""
        return dict(self._decoding)

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        """What DSPy says that the model can do; asked once, for DSPy reads its tables for every question."""
        return Capabilities.of(self._lm)

    def complete(self, request: Request) -> Reply:
        """Return the reply to one request, or raise LMError."""
        with self._call(request) as (messages, params):
            outputs = self._lm(messages=messages, **params)
            return self._reply(outputs, _entry.get() or {})

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply to one request, asynchronously."""
        with self._call(request) as (messages, params):
            outputs = await self._lm.acall(messages=messages, **params)
            return self._reply(outputs, _entry.get() or {})

    @contextlib.contextmanager
    def _call(self, request: Request) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Keep one call from everybody who listens to DSPy: the bridge's other side tells them already."""
        messages = [dict(message) for message in request.messages]
        token = _entry.set({})
        quiet = dspy.context(
            disable_history=False, send_stream=None, callbacks=[], usage_tracker=None, vitrify_scope=None
        )
        try:
            with quiet, adapter_message_call(self._lm, messages):
                yield messages, self._params(request)
        except LMError:
            raise
        except Exception as error:  # noqa: BLE001 - a legacy BaseLM raises whatever its own client raises
            failure = from_dspy(public(error, self.name), self.name)
            failure.args = (self._scrubbed(str(failure)),)
            # Not chained where a server repeats the key: a traceback would show it.
            told = "".join(traceback.format_exception(error))
            raise failure from (error if self._scrubbed(told) == told else None)
        finally:
            _entry.reset(token)

    def _scrubbed(self, text: str) -> str:
        """Return a text without the key, the password or a header's value, which a server may repeat."""
        given = self._lm.kwargs
        provider = self.name.partition("/")[0].upper()
        secrets = [given.get("api_key"), os.environ.get(f"{provider}_API_KEY")]
        secrets += [urlsplit(str(given.get(name) or "")).password for name in ("api_base", "base_url")]
        secrets += [*(given.get("headers") or {}).values(), *(given.get("extra_headers") or {}).values()]
        for secret in sorted({str(one) for one in secrets if one and len(str(one)) > 3}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _params(self, request: Request) -> dict[str, Any]:
        params = dict(request.params)
        if "max_completion_tokens" in self._lm.kwargs and "max_tokens" in params:
            params["max_completion_tokens"] = params.pop("max_tokens")
        if request.replicate is not None:
            params["rollout_id"] = request.replicate
        return params

    def _reply(self, outputs: list[Any], entry: Mapping[str, Any]) -> Reply:
        first = plain(outputs[0])
        output = first if isinstance(first, dict) else {"text": first}
        tokens = entry.get("usage") or {}
        details = plain(tokens.get("prompt_tokens_details")) or {}
        usage = Usage(
            int(tokens.get("prompt_tokens") or 0),
            int(tokens.get("completion_tokens") or 0),
            int(details.get("cached_tokens") or 0),
        )
        calls = tuple(output.get("tool_calls") or ())
        said = getattr(entry.get("response"), "provider_data", None)
        if not output.get("text") and not calls and isinstance(said, Mapping) and ANSWERS.isdisjoint(said):
            raise LMError(
                f"{self.name}: the server's 200 holds {', '.join(map(str, said)) or 'nothing'}, and "
                f"`a reply holds one of {', '.join(sorted(ANSWERS))}`; is the address a chat server's?",
                cause="bad_reply",
                status=200,
            )
        answered_by = str(entry.get("response_model") or self.name)
        finish = _finish_reason(entry.get("response"), "tool_calls" if calls else "stop")
        return Reply(output.get("text"), usage, answered_by, finish, calls, output.get("reasoning_content"))

    def close(self) -> None:
        """Close what DSPy opened."""
        close = getattr(self._lm, "close", None)
        if close is not None:
            close()


def _keep(entry: dict[str, Any]) -> None:
    kept = _entry.get()
    if kept is not None:
        kept.update(entry)


def _finish_reason(response: Any, otherwise: str) -> str:
    """Return why a reply ended, as the wire says it, from DSPy's own response or from a provider's."""
    reason = getattr(response, "finish_reason", None)
    if reason is None:
        choices = getattr(response, "choices", None) or [None]
        reason = getattr(choices[0], "finish_reason", None)
    if not isinstance(reason, str):
        return otherwise
    return "tool_calls" if reason == "tool_call" else reason

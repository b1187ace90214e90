"""A client for OpenAI's chat completions and whatever speaks the same: vLLM, Ollama, llama.cpp, gateways."""

import asyncio
import base64
import os
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from ..signatures.errors import ModelError
from .connections import Unconnected, Untrusted
from .lm import Capabilities, LMError, Reply, Request, Retry, with_retries
from .openai_wire import decode, encode, known_capabilities, retry_after, status_error, wire_name
from .pool import Pool
from .response import Broken
from .site import Site, proxy_for
from .transport import Transport

__all__ = ["OpenAICompatible"]

OPENAI: Final = "https://api.openai.com/v1"

T = TypeVar("T")


class OpenAICompatible:
    """An LM behind `POST <api_base>/chat/completions`.

    Connections, retries and time-outs live on one background event loop per client, started at the first call: any
    number of threads share one pool. An event loop that makes many calls gets a pool of its own, which is closed with
    the loop or with the client. The key is kept in one private place and shown nowhere.

    Args:
        name: the model, with or without provider prefix (`openai/gpt-4o-mini`, `Qwen/Qwen2.5-7B-Instruct`).
        api_base: where the server is; default OPENAI_BASE_URL, OPENAI_API_BASE, else OpenAI's own address.
        api_key: default OPENAI_API_KEY; optional everywhere but at OpenAI. Without a key no header is sent.
        timeout: seconds that one attempt may take from connecting to the last byte.
        retry: how often and how patiently a failed attempt is repeated.
        capabilities: what the model can do; default is DSPy's answer: known for OpenAI's models, else nothing.
        headers: sent with every request; kept as secret as the key.
        sleep, uniform, clock: what waiting, jitter and the reading of dates use; for tests.
    """

    def __init__(
        self,
        name: str,
        *,
        api_base: str | None = None,
        api_key: str | None = None,
        timeout: float = 180.0,
        retry: Retry = Retry(),  # noqa: B008 (frozen)
        capabilities: Capabilities | None = None,
        headers: Mapping[str, str] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        model = wire_name(name)
        if not model:
            raise ModelError(f"`{name}` names no model; `provider/model` or `model` is needed")
        if timeout <= 0:
            raise ModelError(f"{name}: `timeout > 0` must hold, but got {timeout!r}")
        environ = os.environ
        base = api_base or environ.get("OPENAI_BASE_URL") or environ.get("OPENAI_API_BASE") or OPENAI
        key = api_key if api_key is not None else environ.get("OPENAI_API_KEY")
        self._host, self._endpoint = _address(name, base)
        if not key and self._host == "api.openai.com":
            raise ModelError(f"{name}: no key for {self._host}; set OPENAI_API_KEY or pass `api_key`")
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(f"{name}: the key has characters that no header may hold; was it copied with a line end?")
        self._name = name
        self._model = model
        self._capabilities = capabilities or known_capabilities(model) or Capabilities()
        self._timeout = timeout
        self._retry = retry
        self._sleep = sleep
        self._uniform = uniform or random.Random().random
        self._clock = clock
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._headers.update(headers or {})
        user, password = (unquote(part or "") for part in (urlsplit(base).username, urlsplit(base).password))
        secret = [key or "", urlsplit(base).password or "", password, *(headers or {}).values()]
        if password:
            secret.append(base64.b64encode(f"{user}:{password}".encode()).decode())
        self._secrets = tuple(sorted((text for text in secret if len(text) > 3), key=len, reverse=True))
        self._url = base.rstrip("/") + "/chat/completions"
        self._transport: Transport | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        """The name the user gave."""
        return self._name

    @property
    def endpoint(self) -> str:
        """The server's address, without credentials."""
        return self._endpoint

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._capabilities

    @property
    def retry(self) -> Retry:
        """How failed attempts are repeated."""
        return self._retry

    def __repr__(self) -> str:
        return f"OpenAICompatible({self._name!r}, api_base={self._endpoint!r})"

    def complete(self, request: Request) -> Reply:
        """Return the reply, or raise LMError; blocks this thread, not the transport."""
        transport = self._running()
        if transport.is_current_thread():
            raise LMError(
                f"{self._name}: `complete` was called on the client's own loop, which it would block; use `acomplete`.",
                cause="bad_request",
            )
        return transport.complete(request)

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply, or raise LMError; may be awaited on any loop, and cancelled."""
        transport = self._running()
        pool = await transport.pool_here()
        if pool is None:
            return await transport.acomplete(request)
        return await pool.run(self._answer(request, pool))

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The client's own event loop, started where it isn't running yet; see `submit`."""
        return self._running().loop

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the client's own loop, where `acomplete` costs least; `close` cancels it.

        It must not block: every call of every thread waits for it.
        """
        try:
            return self._running().submit(coroutine)
        except BaseException:
            coroutine.close()
            raise

    def close(self) -> None:
        """Drop the connections and stop the loop; calls in flight fail, later ones too. May be called again."""
        with self._lock:
            self._closed = True
            transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _running(self) -> Transport:
        """Return the transport, started at the first call and again in a forked child."""
        transport = self._transport
        if transport is not None and transport.pid == os.getpid():
            return transport
        with self._lock:
            if self._closed:
                raise LMError(
                    f"{self._name}: the client is closed; make a new one.", cause="connection", retryable=False
                )
            if self._transport is None or self._transport.pid != os.getpid():
                # The finalizer must not hold the client, so the transport is handed what answers as a weak method.
                site = Site(self._name, self._url, self._headers, self._timeout, proxy_for(self._url))
                self._transport = Transport(site, weakref.WeakMethod(self._answer))
                weakref.finalize(self, self._transport.close)
            return self._transport

    async def _answer(self, request: Request, pool: Pool) -> Reply:
        """Return the reply, retrying; runs on the pool's loop."""
        body = encode(request, self._model)
        return await with_retries(
            lambda: self._attempt(body, pool), self._retry, sleep=self._sleep, uniform=self._uniform
        )

    async def _attempt(self, body: bytes, pool: Pool) -> Reply:
        """Ask the server once; runs on the pool's loop."""
        try:
            status, headers, content = await pool.post(body)
        except (Untrusted, OSError, ValueError) as error:
            failure = self._no_answer(error)
        else:
            if status == 200:
                try:
                    return decode(content, self._model)
                except ValueError as error:
                    text = f"{self._name}: {self._host} sent a body that is no chat completion: {error}."
                    failure = LMError(text, cause="bad_reply", status=200)
            else:
                wait = retry_after(headers, self._clock())
                failure = status_error(self._name, self._host, status, content, wait)
        # Raised here and not where it was caught: aiohttp's errors may hold headers, and stay out of the chain.
        raise self._scrubbed(failure)

    def _no_answer(self, error: Exception) -> LMError:
        """Return the LMError for an attempt that brought no complete response."""
        if isinstance(error, Unconnected):
            text = (
                f"{self._name}: can't connect to {self._endpoint} ({error.why}); is the server running, and is "
                "`api_base` right?"
            )
            return LMError(text, cause="connection")
        if isinstance(error, TimeoutError):
            text = f"{self._name}: {self._host} didn't answer within `timeout={self._timeout:g}` s; allow more time."
            return LMError(text, cause="timeout")
        if not isinstance(error, OSError):
            text = f"{self._name}: can't talk to {self._endpoint} ({error}); check `api_base`."
            return LMError(text, cause="connection", retryable=False)
        why = f" ({error})" if isinstance(error, Broken) else ""
        text = f"{self._name}: {self._host} dropped the connection before its reply was complete{why}; try again later."
        return LMError(text, cause="connection")

    def _scrubbed(self, error: LMError) -> LMError:
        """Return the error without the key, the password or a header's value, whoever put them there."""
        text = str(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        error.args = (text,)
        return error


def _address(name: str, base: str) -> tuple[str, str]:
    """Return the host and the address without credentials of an `api_base`; ModelError if it is no web address."""
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise ModelError(f"{name}: `api_base` must be an http(s) address such as http://localhost:8000/v1")
    if parts.query or parts.fragment:
        raise ModelError(f"{name}: `api_base` must end with its path, but has a `?` or `#`; the path is appended to it")
    shown = f"[{host}]" if ":" in host else host
    return host, f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"

"""A small OpenAI-compatible server on 127.0.0.1, in a thread, that answers as told and fails on demand."""

import asyncio
import inspect
import json
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

Body = dict[str, Any]
Answer = Callable[[Body], "str | Body | Awaitable[str | Body]"]
Kind = Literal[
    "status",  # answer with `status`
    "hang",  # accept the request and never answer
    "drop",  # close the connection without a byte
    "reset",  # the same, so that the client's system says "connection reset by peer"
    "truncate",  # close half-way through the body
    "garbage",  # 200 with a body that is no JSON
    "invalid_json",  # 200 with JSON cut short, of the right length
    "schema",  # 200 with JSON of another schema
    "error_200",  # 200 with an error inside, as some gateways do
    "echo",  # answer with `status` and all headers of the request in the error's message, as careless gateways do
]


@dataclass(frozen=True)
class Fault:
    """One way to fail: `Fault("hang")`, `Fault.status_code(429, retry_after="2")`."""

    kind: Kind
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def status_code(cls, status: int, *, retry_after: str | None = None, **error: Any) -> Self:
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        return cls("status", status=status, headers=headers, error=error)


Faults = Callable[[int, Body], Fault | None]


def nth(faults: Mapping[int, Fault]) -> Faults:
    """Return faults for the given request numbers, counted from 0 in order of arrival."""
    return lambda number, body: faults.get(number)


def at_random(probability: float, kinds: Sequence[Fault], *, seed: int = 0) -> Faults:
    """Return faults that hit every request with a probability; the same requests for the same seed."""

    def fault(number: int, body: Body) -> Fault | None:
        generator = random.Random(f"{seed}/{number}")
        return generator.choice(kinds) if generator.random() < probability else None

    return fault


@dataclass(frozen=True)
class Received:
    """A request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: Body


class ScriptedServer:
    """`with ScriptedServer(answer=lambda body: "hello") as server: client(server.url)`.

    Args:
        answer: from the request's body to the reply's text, or to a message (`{"content": ..., "tool_calls": ...}`), or
            to a whole body (with `choices`); may be async. The default repeats the last message.
        latency: seconds before an answer, or a function from the body to them.
        faults: who fails how: `nth({0: Fault("hang")})`, `at_random(0.1, [...], seed=3)`, or a mapping for `nth`.
        key: if set, every other `Authorization: Bearer` is answered with 401.
        models: if set, every other model is answered with 404.
        record: whether `requests` is filled.
        port: where to listen, so that a server can come back; 0 takes a free one.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        latency: float | Callable[[Body], float] = 0.0,
        faults: Faults | Mapping[int, Fault] | None = None,
        key: str | None = None,
        models: Sequence[str] | None = None,
        record: bool = True,
        port: int = 0,
    ) -> None:
        self._answer: Answer = answer or (lambda body: str(body["messages"][-1]["content"]))
        self._latency = latency
        self._faults = nth(faults) if isinstance(faults, Mapping) else faults
        self._key = key
        self._models = models
        self._record = record
        self.requests: list[Received] = []
        self.served = 0
        self.in_flight = 0
        self.in_flight_peak = 0
        self.errors: list[BaseException] = []
        self._number = 0
        self._port = port
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="scripted server", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def port(self) -> int:
        return self._port

    @property
    def bodies(self) -> list[Body]:
        return [request.body for request in self.requests]

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10.0):
            raise RuntimeError("the scripted server didn't start")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        if self.errors:
            raise self.errors[0]

    def close(self) -> None:
        """Stop at once: what hangs is dropped. May be called again."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        # The low-level server: no routing, no middleware, no access log.
        runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.1
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port, backlog=1024, reuse_address=True)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/v1/models" and request.method == "GET":
            listed = [{"id": name, "object": "model"} for name in self._models or ("scripted",)]
            return web.json_response({"object": "list", "data": listed})
        if request.path != "/v1/chat/completions" or request.method != "POST":
            return _error(404, {"message": f"no route {request.method} {request.path}"})
        number, self._number = self._number, self._number + 1
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight_peak, self.in_flight)
        try:
            return await self._chat(request, number)
        except Exception as error:
            if not isinstance(error, ConnectionError):  # a bug in a test's own answer: said at the end of the block
                self.errors.append(error)
            raise
        finally:
            self.in_flight -= 1

    async def _chat(self, request: web.BaseRequest, number: int) -> web.StreamResponse:
        body = json.loads(await request.read())
        if self._record:
            self.requests.append(Received(request.path, dict(request.headers), body))
        if self._key is not None and request.headers.get("Authorization") != f"Bearer {self._key}":
            return _error(401, {"message": f"Incorrect API key provided: {request.headers.get('Authorization')}"})
        if self._models is not None and body.get("model") not in self._models:
            return _error(
                404, {"message": f"The model `{body.get('model')}` does not exist", "code": "model_not_found"}
            )
        latency = self._latency(body) if callable(self._latency) else self._latency
        if latency > 0:
            await asyncio.sleep(latency)
        fault = self._faults(number, body) if self._faults else None
        if fault is not None and fault.kind not in ("truncate", "invalid_json"):
            return await self._fail(request, fault)
        answer = self._answer(body)
        if inspect.isawaitable(answer):
            answer = await answer
        data = json.dumps(_completion(body, answer, number)).encode()
        if fault is not None and fault.kind == "invalid_json":
            data = data[: len(data) // 2]
        elif fault is not None:
            return await self._truncate(request, data)
        self.served += 1
        return web.Response(body=data, content_type="application/json")

    async def _fail(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        if fault.kind == "status":
            return _error(fault.status, {"message": f"scripted {fault.status}", **fault.error}, fault.headers)
        if fault.kind == "garbage":
            return web.Response(body=b"<html>\x00\xff upstream says hello</html>", content_type="application/json")
        if fault.kind == "schema":
            return web.json_response({"object": "list", "data": []})
        if fault.kind == "error_200":
            return web.json_response({"error": {"message": "provider is out"}})
        if fault.kind == "echo":
            headers = "; ".join(f"{name}: {value}" for name, value in request.headers.items())
            return _error(fault.status, {"message": f"bad request with {headers}"}, fault.headers)
        if fault.kind == "hang":
            await self._stop.wait()
        if request.transport is not None:
            if fault.kind == "reset":
                connection = request.transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
        return web.Response()  # goes nowhere

    async def _truncate(self, request: web.BaseRequest, data: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        if request.transport is not None:
            request.transport.close()
        return response


def tokens(text: object) -> int:
    """Return the tokens that the server counts for a text: about a quarter of its characters."""
    return len(text if isinstance(text, str) else json.dumps(text)) // 4 + 1


def _completion(body: Body, answer: "str | Body", number: int) -> Body:
    """Return the body of a reply: a text or a message in a choice, with usage; a whole body as it is."""
    if isinstance(answer, dict) and "choices" in answer:
        return answer
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else {"role": "assistant", **answer}
    prompt = sum(tokens(item.get("content")) for item in body["messages"])
    completion = tokens(message.get("content"))
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [
            {"index": 0, "message": message, "finish_reason": "tool_calls" if message.get("tool_calls") else "stop"}
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def _error(status: int, error: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": dict(error)}, status=status, headers=headers)

"""The LM protocol's types and the client, against a real server on loopback."""

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitrify.programs.lm import LM, Capabilities, LMError, Reply, Request, Retry, Usage
from vitrify.programs.openai import OpenAICompatible
from vitrify.programs.openai_wire import decode, encode, is_reasoning_model, known_capabilities, retry_after, wire_name
from vitrify.programs.site import proxy_for
from vitrify.signatures.canonical import NotCanonical, digest
from vitrify.signatures.errors import ModelError, WorkError

from tests.server import Fault, Faults, ScriptedServer, at_random, nth

KEY = "sk-very-secret-0123456789"
ONCE = Retry(attempts=1)
QUICK = Retry(attempts=4, base_delay=0.001, cap=0.002)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def ask(text: str = "hello", model: str = "openai/local", **params: Any) -> Request:
    return Request(model, ({"role": "user", "content": text},), params)


@contextlib.contextmanager
def client(server: ScriptedServer, name: str = "openai/local", **options: Any) -> Iterator[OpenAICompatible]:
    lm = OpenAICompatible(name, api_base=server.url, **{"api_key": KEY, "retry": QUICK, **options})
    try:
        yield lm
    finally:
        lm.close()


class Naps:
    """A sleep that takes no time and remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


# Types


def test_a_key_is_the_requests_content_and_replicate() -> None:
    base = ask(temperature=0.5)
    assert base == ask(temperature=0.5) and hash(base) == hash(ask(temperature=0.5))
    assert len(base.key) == 64 and base.key == base.key
    others = [ask("other", temperature=0.5), ask(temperature=0.6), ask(model="openai/m", temperature=0.5)]
    others.append(Request(base.model, base.messages, base.params, replicate=1))
    assert len({base.key, *(other.key for other in others)}) == 5
    assert Request("m", ({"role": "user", "content": "x"},), {"a": 1, "b": 2}) == Request(
        "m", ({"content": "x", "role": "user"},), {"b": 2, "a": 1}
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@given(
    st.builds(
        Reply,
        text=st.none() | st.text(),
        usage=st.builds(Usage, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)),
        model=st.text(),
        finish_reason=st.text(),
        tool_calls=st.lists(JSON, max_size=2).map(tuple),
        reasoning=st.none() | st.text(),
        attempts=st.integers(1, 9),
    )
)
@settings(max_examples=50, deadline=None)
def test_a_reply_survives_json(reply: Reply) -> None:
    assert Reply.from_json(json.loads(json.dumps(reply.to_json()))) == reply


def test_usage_adds_up() -> None:
    assert Usage(1, 2, 3) + Usage(10, 20, 30) == Usage(11, 22, 33)


def test_an_error_survives_pickling() -> None:
    error = LMError("what", cause="rate_limited", retry_after=2.5, status=429, attempts=3)
    again = pickle.loads(pickle.dumps(error))
    assert (
        isinstance(again, LMError)
        and isinstance(again, WorkError)
        and vars(again) == vars(error)
        and str(again) == "what"
    )
    assert again.retryable and not LMError("x", cause="auth").retryable


def test_back_off_doubles_is_capped_and_ends() -> None:
    retry = Retry(attempts=5, base_delay=1.0, cap=3.0, patience=10.0)
    down = LMError("x", cause="server")
    assert [retry.delay(number, down, 0.0) for number in (1, 2, 3, 4, 5)] == [0.5, 1.0, 1.5, 1.5, None]
    assert retry.delay(1, down, 0.999) == pytest.approx(1.0, abs=0.01)
    assert retry.delay(1, LMError("x", cause="auth"), 0.5) is None
    assert retry.delay(1, LMError("x", cause="rate_limited", retry_after=7.0), 0.0) == 7.0
    assert retry.delay(1, LMError("x", cause="rate_limited", retry_after=11.0), 0.0) is None, "longer than patience"
    with pytest.raises(ValueError, match="attempts >= 1"):
        Retry(attempts=0)


# The wire


def test_the_body_is_model_messages_and_params_alone() -> None:
    with ScriptedServer(key=KEY) as server, client(server, headers={"X-Team": "blue"}) as lm:
        request = Request(
            lm.name, ask("é").messages, {"temperature": 0.0, "stop": ["x"], "max_tokens": None}, replicate=7
        )
        reply = lm.complete(request)
        assert server.bodies == [
            {"model": "local", "messages": [{"role": "user", "content": "é"}], "temperature": 0.0, "stop": ["x"]}
        ]
        headers = server.requests[0].headers
        assert (headers["Authorization"], headers["X-Team"]) == (f"Bearer {KEY}", "blue")
        assert reply == Reply("é", Usage(1, 1), "local")
        assert isinstance(lm.endpoint, str) and lm.endpoint == server.url
    lm_protocol: LM = lm
    assert lm_protocol.capabilities == Capabilities()


def test_without_a_key_no_header_is_sent() -> None:
    with ScriptedServer() as server, client(server, api_key=None) as lm:
        lm.complete(ask())
        assert "Authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("name", "params", "sent"),
    [
        (
            "openai/gpt-4o-mini",
            {"temperature": 0.0, "max_tokens": 100},
            {"temperature": 0.0, "max_completion_tokens": 100},
        ),
        (
            "openai/o3-mini",
            {"temperature": 1.0, "max_tokens": 20000},
            {"temperature": 1.0, "max_completion_tokens": 20000},
        ),
        ("openai/gpt-5-mini", {"temperature": 0.2, "reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ("openai/Qwen/Qwen2.5-7B", {"max_tokens": 100, "seed": 0}, {"max_tokens": 100, "seed": 0}),
        ("openai/local", {"extra_body": {"top_k": 3}}, {"top_k": 3}),
    ],
)
def test_parameters_are_named_as_the_model_wants_them(name: str, params: Any, sent: Any) -> None:
    body = json.loads(encode(ask(model=name, **params), wire_name(name)))
    assert body == {"model": name.removeprefix("openai/"), "messages": [{"role": "user", "content": "hello"}], **sent}


def test_n_and_stream_are_refused() -> None:
    for params in ({"n": 2}, {"stream": True}):
        with pytest.raises(LMError, match="`n` must be 1") as caught:
            encode(ask(**params), "local")
        assert (caught.value.cause, caught.value.retryable) == ("bad_request", False)


def test_the_body_is_what_dspy_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    dspy: Any = pytest.importorskip("dspy")

    cases: list[tuple[str, dict[str, Any]]] = [
        ("openai/gpt-4o-mini", {"temperature": 0.0, "max_tokens": 100, "stop": ["x"]}),
        ("openai/gpt-4.1", {"top_p": 0.5, "seed": 3, "frequency_penalty": 0.1}),
        ("openai/o3-mini", {"temperature": 1.0, "max_tokens": 20000}),
        ("openai/gpt-5", {}),
        ("openai/some/local-model", {"temperature": 0.7}),
    ]
    with ScriptedServer(lambda body: "[[ ## answer ## ]]\nx\n\n[[ ## completed ## ]]") as server:
        for name, params in cases:
            theirs = dspy.LM(name, api_base=server.url, api_key=KEY, cache=False, num_retries=0, **params)
            with dspy.context(lm=theirs, adapter=dspy.ChatAdapter()):
                dspy.Predict("question -> answer")(question="é?")
            messages = tuple(server.bodies[-1]["messages"])
            with client(server, name) as lm:
                lm.complete(Request(name, messages, params))
            assert server.bodies[-1] == server.bodies[-2], name


def test_capabilities_are_dspys_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    dspy: Any = pytest.importorskip("dspy")
    from dspy.clients.capabilities import capabilities
    from dspy.clients.lm import _is_openai_reasoning_model

    names = [
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-4o-2024-05-13",
        "gpt-4o-2024-11-20",
        "gpt-4.1",
        "gpt-4.1-mini",
        "gpt-4.1-nano",
        "gpt-4",
        "gpt-4-turbo",
        "gpt-3.5-turbo",
        "o1",
        "o1-mini",
        "o3",
        "o3-mini",
        "o3-mini-2025-01-31",
        "o4-mini",
        "o3-pro",
        "gpt-5",
        "gpt-5-mini",
        "gpt-5-nano",
        "gpt-5.1",
        "gpt-5.2-2025-12-11",
        "gpt-5-chat-latest",
        "gpt-5-pro",
        "gpt-5.4-pro",
        "some-local-model",
        "Qwen/Qwen2.5-7B-Instruct",
    ]
    for name in names:
        theirs = capabilities(dspy.LM(f"openai/{name}", api_base="http://127.0.0.1:9/v1", api_key="k"))
        ours = OpenAICompatible(f"openai/{name}", api_base="http://127.0.0.1:9/v1").capabilities
        expected = Capabilities(
            response_format="response_format" in theirs.params,
            response_schema=theirs.response_schema,
            function_calling=theirs.function_calling,
            reasoning=theirs.reasoning,
        )
        assert ours == expected, name
        assert is_reasoning_model(name) == _is_openai_reasoning_model(f"openai/{name}"), name
    assert known_capabilities("llama3") is None
    told = Capabilities(response_format=True)
    assert OpenAICompatible("m", api_base="http://h/v1", capabilities=told).capabilities == told


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "hi"}, ("hi", (), None)),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, ("ab", (), None)),
        ({"content": None, "tool_calls": [{"id": "1"}]}, (None, ({"id": "1"},), None)),
        ({"content": None, "refusal": "I won't"}, ("I won't", (), None)),
        ({"content": "x", "reasoning_content": "hm"}, ("x", (), "hm")),
        ({"content": None}, (None, (), None)),
    ],
)
def test_replies_of_every_form_are_read(message: Any, expected: Any) -> None:
    reply = decode(json.dumps({"choices": [{"message": message, "finish_reason": None}]}).encode(), "m")
    assert (reply.text, reply.tool_calls, reply.reasoning) == expected
    assert (reply.model, reply.finish_reason, reply.usage) == ("m", "stop", Usage())


def test_cached_tokens_are_read() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    body = {"choices": [{"message": {"content": "x"}}], "usage": usage, "model": "big"}
    assert decode(json.dumps(body).encode(), "m") == Reply("x", Usage(9, 2, 4), "big")


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, deadline=None)
def test_no_body_gets_past_the_reader_as_anything_but_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode(body, "m")
    with pytest.raises(ValueError):
        decode(b'{"choices": [{"message": ' + body + b"}]}" if not body.startswith(b"{") else b"[" * 100_000, "m")


def test_retry_after_in_seconds_milliseconds_and_dates() -> None:
    now = 1_700_000_000.0
    assert retry_after({"retry-after": "2.5"}, now) == 2.5
    assert retry_after({"retry-after-ms": "250", "Retry-After": "1"}, now) == 0.25
    assert retry_after({"retry-after": formatdate(now + 30, usegmt=True)}, now) == 30.0
    assert retry_after({"retry-after": formatdate(now - 30, usegmt=True)}, now) == 0.0
    assert [retry_after({"retry-after": text}, now) for text in ("", "soon", "-1", "nan", "inf")] == [None] * 5


# Faults

GONE = Fault("drop")
FAULTS: list[tuple[Fault, str, bool, str]] = [
    (Fault.status_code(401), "auth", False, "OPENAI_API_KEY"),
    (Fault.status_code(403), "auth", False, "api_key"),
    (Fault.status_code(404, code="model_not_found"), "unknown_model", False, "api_base"),
    (Fault.status_code(400), "bad_request", False, "scripted 400"),
    (Fault.status_code(422), "bad_request", False, "422"),
    (Fault.status_code(307), "bad_request", False, "redirects"),
    (Fault.status_code(400, code="context_length_exceeded"), "context_overflow", False, "shorter"),
    (Fault.status_code(400, message="maximum context length is 8192 tokens"), "context_overflow", False, "fewer"),
    (Fault.status_code(429), "rate_limited", True, "concurrency"),
    (Fault.status_code(429, code="insufficient_quota"), "rate_limited", False, "quota"),
    (Fault.status_code(500), "server", True, "500"),
    (Fault.status_code(503), "server", True, "503"),
    (Fault.status_code(504), "timeout", True, "504"),
    (Fault("garbage"), "bad_reply", True, "no chat completion"),
    (Fault("invalid_json"), "bad_reply", True, "no chat completion"),
    (Fault("schema"), "bad_reply", True, "choices"),
    (Fault("error_200"), "bad_reply", True, "provider is out"),
    (Fault("truncate"), "connection", True, "dropped"),
    (GONE, "connection", True, "dropped"),
]


@pytest.mark.parametrize(("fault", "cause", "retryable", "said"), FAULTS, ids=lambda value: str(value)[:40])
def test_each_fault_has_its_cause_and_is_retried_or_not(fault: Fault, cause: str, retryable: bool, said: str) -> None:
    with ScriptedServer(faults=lambda number, body: fault if number < 9 else None) as server, client(server) as lm:
        with pytest.raises(LMError) as caught:
            lm.complete(ask())
        error = caught.value
        assert (error.cause, error.retryable) == (cause, retryable)
        assert said in str(error) and "openai/local" in str(error)
        assert error.attempts == len(server.requests) == (QUICK.attempts if retryable else 1)
        assert error.status == (fault.status if fault.kind == "status" else error.status)
    with ScriptedServer(faults=nth({0: fault, 1: fault})) as server, client(server) as lm:
        if retryable:
            assert lm.complete(ask()).attempts == 3


def test_a_wrong_key_and_an_unknown_model() -> None:
    with ScriptedServer(key="other", models=["local"]) as server, client(server) as lm:
        with pytest.raises(LMError, match="refused the key") as caught:
            lm.complete(ask())
        assert (caught.value.cause, caught.value.status) == ("auth", 401)
    with ScriptedServer(models=["big"]) as server, client(server) as lm:
        with pytest.raises(LMError, match="The model `local` does not exist") as caught:
            lm.complete(ask())
        assert caught.value.cause == "unknown_model"


def test_a_refused_connection_names_the_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = f"http://user:hunter22@127.0.0.1:{free.getsockname()[1]}/v1"
    with contextlib.closing(OpenAICompatible("openai/local", api_base=base, retry=QUICK)) as lm:
        with pytest.raises(LMError, match=r"can't connect to http://127\.0\.0\.1:\d+/v1") as caught:
            lm.complete(ask())
        assert (caught.value.cause, caught.value.retryable, caught.value.attempts) == ("connection", True, 4)
        assert "hunter22" not in str(caught.value) + repr(lm) + lm.endpoint


def test_retry_after_is_waited_for() -> None:
    naps = Naps()
    faults = {0: Fault.status_code(429, retry_after="7"), 1: Fault.status_code(503, retry_after="3"), 2: GONE}
    with ScriptedServer(faults=faults) as server:
        retry = Retry(attempts=4, base_delay=1.0, cap=8.0)
        with client(server, retry=retry, sleep=naps, uniform=lambda: 0.5) as lm:
            assert lm.complete(ask()).attempts == 4
    assert naps.seconds == [7.0 + 0.25 * 1.0 * 0.5, 3.0 + 0.25 * 2.0 * 0.5, 4.0 * 0.75]


def test_a_retry_after_as_a_date_uses_the_clock() -> None:
    naps = Naps()
    header = formatdate(1_700_000_009, usegmt=True)
    faults = {0: Fault.status_code(429, retry_after=header)}
    now: dict[str, Any] = {"sleep": naps, "uniform": lambda: 0.0, "clock": lambda: 1_700_000_000.0}
    with ScriptedServer(faults=faults) as server, client(server, **now) as lm:
        lm.complete(ask())
    assert naps.seconds == [9.0]


def test_a_retry_after_beyond_patience_is_raised_at_once() -> None:
    naps = Naps()
    faults = {0: Fault.status_code(429, retry_after="3600")}
    with ScriptedServer(faults=faults) as server, client(server, sleep=naps) as lm:
        with pytest.raises(LMError, match="asks to wait 3600 s") as caught:
            lm.complete(ask())
        assert len(server.requests) == 1
    assert (caught.value.retry_after, caught.value.attempts, naps.seconds) == (3600.0, 1, [])


def test_a_server_that_hangs_runs_into_the_timeout() -> None:
    with ScriptedServer(faults={0: Fault("hang")}) as server, client(server, timeout=0.15, retry=ONCE) as lm:
        with pytest.raises(LMError, match=r"`timeout=0\.15` s") as caught:
            lm.complete(ask())
        assert (caught.value.cause, caught.value.retryable) == ("timeout", True)
        assert lm.complete(ask()).text == "hello", "the client lives on"


def test_random_faults_are_survived_and_counted() -> None:
    kinds = [Fault.status_code(500), Fault("garbage"), GONE, Fault("truncate"), Fault.status_code(429)]
    with ScriptedServer(faults=at_random(0.3, kinds, seed=1)) as server:
        retry = Retry(attempts=12, base_delay=0.001, cap=0.002)
        with client(server, retry=retry) as lm, ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda number: lm.complete(ask(f"q{number}")), range(200)))
        assert [reply.text for reply in replies] == [f"q{number}" for number in range(200)]
        assert sum(reply.attempts for reply in replies) == len(server.requests) > 230


# The identity of a request

texts = st.text(st.characters(), max_size=20) | st.sampled_from(["é", '"\\\n\x1f\x7f', "\u2028\ufeff", "\U0001f600"])
contents = texts | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=2)
messages = st.fixed_dictionaries({"role": texts, "content": contents}, optional={"name": texts, "x": st.integers(0, 9)})
options = st.dictionaries(texts, texts | st.floats(allow_nan=False) | st.booleans() | st.integers(0, 9), max_size=3)


@given(st.lists(messages, max_size=4), options, st.none() | st.integers(0, 2**40), texts)
def test_a_key_is_the_digest_of_the_canonical_json(
    said: list[Any], params: dict[str, Any], replicate: int | None, model: str
) -> None:
    """However it is computed: what JSON's own encoder writes for texts, and canonical JSON for anything else."""
    identity = {"model": model, "messages": said, "params": params, "replicate": replicate}
    try:
        expected: object = digest(identity)
    except NotCanonical as error:
        expected = type(error)
    try:
        found: object = Request(model, tuple(said), params, replicate).key
    except NotCanonical as error:
        found = type(error)
    assert expected == found


# The key


def test_the_key_is_shown_nowhere() -> None:
    def shout(body: dict[str, Any]) -> Any:
        return {"choices": "none", "error": {"message": f"your key {KEY} and header blue-secret"}}

    faults = [None, Fault.status_code(400, message=f"bad {KEY}"), Fault.status_code(401, message=KEY), GONE]
    for fault in faults:
        said: Faults = lambda number, body, fault=fault: fault  # type: ignore[misc]  # noqa: E731
        with ScriptedServer(shout, faults=said) as server, client(server, headers={"X-Secret": "blue-secret"}) as lm:
            with pytest.raises(LMError) as caught:
                lm.complete(ask())
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(lm) + str(lm)
            error: BaseException | None = caught.value
            while error is not None:
                shown += repr(error) + str(vars(error))
                error = error.__cause__ or error.__context__
            assert KEY not in shown and "blue-secret" not in shown


def test_a_key_that_is_no_header_is_refused_without_showing_it() -> None:
    with pytest.raises(ModelError, match="line end") as caught:
        OpenAICompatible("openai/m", api_key=KEY + "\n")
    assert KEY not in str(caught.value)


# Names, addresses, environment


def test_the_environment_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        OpenAICompatible("openai/gpt-4o-mini")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert OpenAICompatible("openai/gpt-4o-mini").endpoint == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_API_BASE", "http://gateway:8000/v1/")
    assert OpenAICompatible("openai/gpt-4o-mini").endpoint == "http://gateway:8000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://first/v1")
    assert OpenAICompatible("openai/gpt-4o-mini").endpoint == "http://first/v1"
    assert OpenAICompatible("openai/m", api_base="http://[::1]:80/v1").endpoint == "http://[::1]:80/v1"
    with ScriptedServer(key=KEY) as server, client(server, api_key=None) as lm:
        assert lm.complete(ask()).text == "hello"


@pytest.mark.parametrize("base", ["localhost:8000", "ftp://h/v1", "http://", "http://h:port/v1", "http://h/v1?key=x"])
def test_what_is_no_address_is_refused(base: str) -> None:
    with pytest.raises(ModelError, match="api_base"):
        OpenAICompatible("openai/m", api_base=base)


def test_names_lose_their_provider_only() -> None:
    names = ["openai/gpt-4o", "gpt-4o", "openai/Qwen/Q", "hosted_vllm/meta-llama/L", "meta-llama/L"]
    assert [wire_name(name) for name in names] == ["gpt-4o", "gpt-4o", "Qwen/Q", "meta-llama/L", "meta-llama/L"]
    with pytest.raises(ModelError, match="names no model"):
        OpenAICompatible("openai/", api_key=KEY)


def test_a_proxy_is_never_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("https_proxy", "http://proxy:2")
    monkeypatch.setenv("no_proxy", "inside.example")
    urls = ["http://127.0.0.1:9/v1", "http://localhost/v1", "http://[::1]:9/v1", "http://inside.example/v1"]
    assert [proxy_for(url) for url in urls] == [None] * 4
    assert [proxy_for(url) for url in ("http://h/v1", "https://h/v1")] == ["http://proxy:1", "http://proxy:2"]
    with ScriptedServer() as server, client(server) as lm:
        assert lm.complete(ask()).text == "hello"


# Threads and loops


def test_many_threads_share_one_pool() -> None:
    with ScriptedServer(latency=0.02) as server, client(server) as lm:
        before = threading.active_count()
        with ThreadPoolExecutor(32) as pool:
            texts = list(pool.map(lambda number: lm.complete(ask(f"q{number}")).text, range(320)))
            assert threading.active_count() <= before + 1 + 32
        assert texts == [f"q{number}" for number in range(320)]
        assert server.in_flight_peak > 16


def test_it_may_be_awaited_on_any_loop_and_on_several() -> None:
    async def many(lm: OpenAICompatible) -> list[str | None]:
        replies = await asyncio.gather(*(lm.acomplete(ask(f"q{number}")) for number in range(64)))
        return [reply.text for reply in replies]

    with ScriptedServer(latency=0.02) as server, client(server) as lm:
        for _ in range(2):
            assert asyncio.run(many(lm)) == [f"q{number}" for number in range(64)]
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(lambda _: asyncio.run(many(lm)), range(3)))
        assert results == [[f"q{number}" for number in range(64)]] * 3
        assert server.in_flight_peak > 100


def test_a_sync_call_inside_a_running_loop_works() -> None:
    async def inside(lm: OpenAICompatible) -> str | None:
        return lm.complete(ask()).text

    with ScriptedServer() as server, client(server) as lm:
        assert asyncio.run(inside(lm)) == "hello"


def test_cancelling_gives_the_call_up_and_the_client_lives_on() -> None:
    async def impatient(lm: OpenAICompatible) -> str | None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(lm.acomplete(ask()), 0.1)
        return (await lm.acomplete(ask("again"))).text

    with ScriptedServer(faults={0: Fault("hang")}) as server, client(server) as lm:
        assert asyncio.run(impatient(lm)) == "again"
        deadline = time.monotonic() + 5
        while server.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.in_flight == 0, "the connection of the cancelled call was dropped"


def test_closing_fails_what_is_in_flight_and_may_be_repeated() -> None:
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as server, client(server) as lm:
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(lm.complete, ask()) for _ in range(4)]
            while server.in_flight < 4:
                time.sleep(0.005)
            lm.close()
            for call in calls:
                with pytest.raises(LMError, match="closed while") as caught:
                    call.result(timeout=5)
                assert (caught.value.cause, caught.value.retryable) == ("connection", False)
        lm.close()
        with pytest.raises(LMError, match="closed; make a new one"):
            lm.complete(ask())
    OpenAICompatible("openai/m", api_key=KEY).close()


def test_a_forgotten_client_leaves_no_thread() -> None:
    with ScriptedServer() as server:
        lm = OpenAICompatible("openai/forgotten", api_base=server.url)
        lm.complete(ask())
        named = [thread for thread in threading.enumerate() if thread.name == "vitrify openai/forgotten"]
        assert len(named) == 1
        del lm
        named[0].join(5)
        assert not named[0].is_alive()


def test_it_survives_a_fork() -> None:
    with ScriptedServer() as server, client(server) as lm:
        assert lm.complete(ask()).text == "hello"
        child = os.fork()
        if child == 0:  # pragma: no cover
            signal.alarm(10)
            os._exit(0 if lm.complete(ask("child")).text == "child" else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert lm.complete(ask("parent")).text == "parent"


def test_importing_the_protocol_is_cheap() -> None:
    code = (
        "import sys, vitrify.programs.lm, vitrify.programs.openai\n"
        "print([name for name in ('aiohttp', 'dspy', 'litellm', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The server


def test_the_scripted_server_is_fast_and_lists_models() -> None:
    from urllib.request import urlopen

    with ScriptedServer(models=["local"]) as server, client(server) as lm:
        with urlopen(f"{server.url}/models", timeout=5) as response:
            assert [item["id"] for item in json.load(response)["data"]] == ["local"]

        async def many(count: int) -> None:
            gate = asyncio.Semaphore(64)

            async def one() -> None:
                async with gate:
                    await lm.acomplete(ask())

            await asyncio.gather(*(one() for _ in range(count)))

        asyncio.run(many(100))
        begun = time.perf_counter()
        asyncio.run(many(2000))
        # Client and server share this process; on an idle machine it is about 2,500 a second.
        assert 2000 / (time.perf_counter() - begun) > 400
        assert server.in_flight_peak <= 64

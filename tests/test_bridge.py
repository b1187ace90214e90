"""The bridge: dspy.LM as one of our language models, and ours as a dspy.LM, with errors mapped both ways."""

import asyncio
import warnings
from collections.abc import Mapping
from typing import Any, get_args

from .plain_and_bound import OurLM, chat, in_turn, scripted

import dspy  # isort: skip
import pytest
from dspy import lm15
from dspy.utils import exceptions as dspy_errors
from dspy.utils.dummies import DummyLM
from hypothesis import given, settings
from hypothesis import strategies as st
from vitrify.programs.bind import bind
from vitrify.programs.bridge import DspyLM, EngineLM
from vitrify.programs.lm import Capabilities, Cause, LMError, Reply, Request, Usage
from vitrify.programs.openai import OpenAICompatible
from vitrify.programs.program import lower_program

from .server import Fault, ScriptedServer

MESSAGES = ({"role": "user", "content": "hello"},)
TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def ask(lm: Any, request: Request, mode: str = "sync") -> Reply:
    found: Reply = lm.complete(request) if mode == "sync" else asyncio.run(lm.acomplete(request))
    return found


def bridged(server: ScriptedServer, **options: Any) -> DspyLM:
    known = {"api_base": server.url, "api_key": "sk-secret", "cache": True, "num_retries": 3, **options}
    return DspyLM(dspy.LM(options.pop("name", "openai/x"), **{k: v for k, v in known.items() if k != "name"}))


# Theirs as ours.


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_plain_dspy_lm(mode: str) -> None:
    with ScriptedServer(lambda body: "hi") as server:
        lm = bridged(server, temperature=0.5, n=3)
        request = Request("openai/x", MESSAGES, {"temperature": 0.5, "stop": ["z"]}, replicate=4)
        first, second = ask(lm, request, mode), ask(lm, request, mode)
    assert ("hi", "stop", "x") == (first.text, first.finish_reason, first.model) and first == second
    assert Usage(2, 1) == first.usage
    # DSPy's cache is off, `n` is ours to count, the rollout isn't sent, and the key is nowhere but in the header.
    assert 2 == len(server.bodies)
    for received in server.requests:
        assert {"model": "x", "messages": [*MESSAGES], "temperature": 0.5, "stop": ["z"]} == received.body
        assert "Bearer sk-secret" == received.headers["Authorization"]
    assert {"temperature": 0.5, "n": 3} == lm.decoding and "secret" not in f"{lm.endpoint} {lm.decoding} {request}"
    assert server.url in lm.endpoint and "openai/x" == lm.name


FAULTS: list[tuple[Fault, Cause, bool]] = [
    (Fault.status_code(429, retry_after="7"), "rate_limited", True),
    (Fault.status_code(500), "server", True),
    (Fault.status_code(503), "server", True),
    (Fault.status_code(401), "auth", False),
    (Fault.status_code(429, code="insufficient_quota", type="insufficient_quota"), "auth", False),
    (Fault.status_code(404, code="model_not_found"), "unknown_model", False),
    (Fault.status_code(400, code="context_length_exceeded"), "context_overflow", False),
    (Fault.status_code(400), "bad_request", False),
    (Fault("drop"), "connection", True),
]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(("fault", "cause", "retryable"), FAULTS)
def test_the_causes_of_failures(fault: Fault, cause: Cause, retryable: bool, mode: str) -> None:
    with ScriptedServer(faults=lambda number, body: fault) as server, pytest.raises(LMError) as caught:
        ask(bridged(server), Request("openai/x", MESSAGES), mode)
    assert (cause, retryable) == (caught.value.cause, caught.value.retryable)
    # The scheduler retries, not DSPy.
    assert 1 == len(server.requests)
    assert str(caught.value).startswith("openai/x: ") and "secret" not in str(caught.value)
    if "Retry-After" in fault.headers:
        assert 7.0 == caught.value.retry_after and 429 == caught.value.status


@pytest.mark.parametrize("kind", ["garbage", "invalid_json", "schema", "truncate"])
def test_a_reply_that_is_none_is_an_lm_error(kind: Any) -> None:
    with ScriptedServer(faults=lambda number, body: Fault(kind)) as server, pytest.raises(LMError):
        ask(bridged(server), Request("openai/x", MESSAGES))


def test_a_server_that_hangs() -> None:
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as server, pytest.raises(LMError) as caught:
        ask(bridged(server, timeout=0.2), Request("openai/x", MESSAGES))
    assert "timeout" == caught.value.cause and caught.value.retryable


def test_tool_calls_content_blocks_and_a_cut_reply() -> None:
    blocks: Any = [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
    ]
    tools: Any = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    message = {"content": None, "tool_calls": [TOOL_CALL]}
    with ScriptedServer(lambda body: message) as server:
        reply = ask(bridged(server), Request("openai/x", ({"role": "user", "content": blocks},), {"tools": tools}))
    assert blocks == server.bodies[0]["messages"][0]["content"] and tools == server.bodies[0]["tools"]
    assert (None, "tool_calls") == (reply.text, reply.finish_reason)
    call: Any = reply.tool_calls[0]
    assert "f" == call["function"]["name"] and Reply.from_json(reply.to_json()) == reply
    cut = {"choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "a"}}]}
    with ScriptedServer(lambda body: {**cut, "model": "served", "usage": {}}) as server:
        reply = ask(bridged(server), Request("openai/x", MESSAGES))
    assert ("length", "served", Usage()) == (reply.finish_reason, reply.model, reply.usage)


class Legacy(dspy.BaseLM):
    """A language model as users write them: it knows no engines, and raises whatever its client raises."""

    def __init__(self, said: Any) -> None:
        super().__init__("my/model", temperature=0.1)
        self.said = said
        self.seen: list[dict[str, Any]] = []

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        self.seen.append(kwargs)
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


class Attributes(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def completion(text: str) -> Any:
    message = Attributes(content=text)
    choice = Attributes(message=message, finish_reason="length")
    usage = {"prompt_tokens": 4, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}
    return Attributes(choices=[choice], usage=usage, model="mine")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_base_lm_of_the_users_own() -> None:
    legacy = Legacy(completion("hi"))
    reply = ask(DspyLM(legacy), Request("my/model", MESSAGES, {"temperature": 0.9}))
    assert Reply("hi", Usage(4, 5, 3), "mine", "length") == reply
    assert [] == legacy.history
    raised: list[tuple[Exception, Cause, bool]] = [
        (TimeoutError("slow"), "timeout", True),
        (ConnectionResetError("gone"), "connection", True),
        (KeyError("choices"), "server", False),
        (dspy_errors.LMRateLimitError("later", retry_after=3), "rate_limited", True),
        (lm15.ContextLengthError("long"), "context_overflow", False),
    ]
    for error, cause, retryable in raised:
        with pytest.raises(LMError) as caught:
            ask(DspyLM(Legacy(error)), Request("my/model", MESSAGES))
        assert (cause, retryable) == (caught.value.cause, caught.value.retryable), error
        assert caught.value.__cause__ is error
    with pytest.raises(LMError, match="KeyError: 'choices'"):
        ask(DspyLM(Legacy(KeyError("choices"))), Request("my/model", MESSAGES))


def test_our_own_errors_pass_through_and_nobody_else_is_told() -> None:
    inner = LMError("later", cause="rate_limited", retry_after=2.0)
    with pytest.raises(LMError) as caught:
        ask(DspyLM(EngineLM(OurLM(in_turn(inner)))), Request("openai/stub", MESSAGES))
    assert ("rate_limited", 2.0, True) == (caught.value.cause, caught.value.retry_after, caught.value.retryable)
    user = scripted()
    with warnings.catch_warnings(), dspy.context(track_usage=True, disable_history=False):
        warnings.simplefilter("error")
        lm = EngineLM(DspyLM(user))
        plain = dspy.Predict("q -> a")
        spec = lower_program(plain)
        for program in (plain, bind(plain, spec, spec.baseline)):
            with dspy.context(lm=lm):
                # One call is counted once, though it passes through two of DSPy's language models.
                usage = program(q="x").get_lm_usage()
                assert 3 == usage["test/m"]["prompt_tokens"] and ["test/m"] == list(usage)
    assert 2 == len(lm.history) and [] == user.history


def test_dummy_lm() -> None:
    lm = DspyLM(DummyLM([{"a": "red"}, {"a": "blue"}]))
    found = [dspy.Predict("q -> a", lm=None)(q="x", lm=EngineLM(lm)).a for _ in range(2)]
    assert ["red", "blue"] == found


def test_capabilities_are_dspys_and_asked_once() -> None:
    lm = DspyLM(scripted(params=("response_format",), schema=True))
    assert Capabilities(True, True) == lm.capabilities == EngineLM(lm).capabilities
    assert lm.capabilities is lm.capabilities
    assert "response_format" in EngineLM(lm).supported_params and EngineLM(lm).supports_response_schema


def test_the_users_lm_is_left_alone() -> None:
    with ScriptedServer(lambda body: "hi") as server:
        user = dspy.LM("openai/x", api_base=server.url, api_key="k", cache=True, num_retries=5)
        lm = DspyLM(user)
        ask(lm, Request("openai/x", MESSAGES))
        assert (True, 5, []) == (user.cache, user.num_retries, user.history)
        lm.close()
        assert "hi" == ask(lm, Request("openai/x", MESSAGES)).text


# Ours as theirs.


def lm_calls(quiet: bool, mode: str, program: Any, lm: Any, **inputs: Any) -> Any:
    with dspy.context(lm=lm, disable_history=quiet):
        return program(**inputs) if mode == "sync" else asyncio.run(program.acall(**inputs))


CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.0, 1, 0.5]),
        "max_tokens": st.integers(1, 100),
        "top_p": st.sampled_from([1, 0.9]),
        "top_k": st.integers(1, 5),
        "min_p": st.just(0.1),
        "seed": st.integers(0, 9),
        "stop": st.sampled_from(["x", ["x", "y"]]),
        "presence_penalty": st.just(1),
        "logit_bias": st.just({"1": 2}),
        "reasoning_effort": st.sampled_from(["low", "none"]),
        "rollout_id": st.integers(0, 3),
        "n": st.just(1),
    },
)


@settings(max_examples=40, deadline=None)
@given(CONFIGS, CONFIGS, st.sampled_from(["chat", "json"]), st.booleans())
def test_the_short_way_sends_the_request_of_the_long_way(
    decoding: dict[str, Any], config: dict[str, Any], format: Any, schema: bool
) -> None:
    plain = dspy.Predict("q -> a: int, b: list[str]", **config)
    spec = lower_program(plain)
    bound = bind(plain, spec, spec.baseline.with_params("self", format=format))
    said = chat(a=1, b=["x"]) if format == "chat" else '{"a": 1, "b": ["x"]}'
    seen: list[Request] = []
    for quiet in (True, False):
        for mode in ("sync", "async"):
            ours = OurLM(in_turn(said), Capabilities(True, schema))
            lm = EngineLM(ours, **decoding)
            assert 1 == lm_calls(quiet, mode, bound, lm, q="x").a
            assert quiet is (not lm.history)
            seen += ours.seen
    assert 4 == len(seen) and 1 == len({request.key for request in seen})
    assert {"rollout_id", "n"}.isdisjoint(seen[0].params)
    assert {**decoding, **config}.get("rollout_id") == seen[0].replicate


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("cause", get_args(Cause))
def test_our_errors_are_dspys_public_ones_and_come_back(cause: Cause, mode: str, quiet: bool) -> None:
    error = LMError("it failed", cause=cause, retry_after=3.0, status=499)
    expected: Mapping[Cause, type[Exception]] = {
        "rate_limited": dspy_errors.LMRateLimitError,
        "server": dspy_errors.LMServerError,
        "timeout": dspy_errors.LMTimeoutError,
        "connection": dspy_errors.LMTransportError,
        "auth": dspy_errors.LMAuthError,
        "unknown_model": dspy_errors.LMUnsupportedModelError,
        "context_overflow": dspy_errors.ContextWindowExceededError,
        "bad_request": dspy_errors.LMInvalidRequestError,
        "bad_reply": dspy_errors.LMServerError,
    }
    plain = dspy.Predict("q -> a")
    spec = lower_program(plain)
    ours = OurLM(in_turn(error))
    with pytest.raises(expected[cause]) as caught:
        lm_calls(quiet, mode, bind(plain, spec, spec.baseline), EngineLM(ours), q="x")
    assert not isinstance(caught.value, ValueError) and "it failed" in str(caught.value) and 1 == len(ours.seen)
    with pytest.raises(LMError) as back:
        ask(DspyLM(EngineLM(OurLM(in_turn(error)))), Request("openai/stub", MESSAGES), mode)
    assert ("server" if cause == "bad_reply" else cause) == back.value.cause


def test_several_samples_of_one_request_are_told_apart() -> None:
    for rollout in (None, 1, 2):
        ours = OurLM()
        lm = EngineLM(ours, **({} if rollout is None else {"rollout_id": rollout}))
        prediction = lm_calls(True, "sync", dspy.Predict("q -> a", n=3), lm, q="x")
        assert 3 == len(prediction.completions) and 3 == len({request.key for request in ours.seen})
        assert rollout == ours.seen[0].replicate and all("n" not in request.params for request in ours.seen)
        assert all(int(request.replicate or 0) < 2**53 for request in ours.seen)


def test_what_is_no_sampling_parameter_goes_the_long_way() -> None:
    plain = dspy.Predict("q -> a")
    spec = lower_program(plain)
    bound = bind(plain, spec, spec.baseline)
    ours = OurLM()
    lm = EngineLM(ours)
    with dspy.context(lm=lm, disable_history=True):
        # A connection is no business of a predictor's, and a key never gets into a request.
        for config in ({"api_key": "sk-secret"}, {"api_base": "http://x.test"}, {"extra_body": {"x": 1}}):
            with pytest.raises((ValueError, dspy_errors.LMError)):
                bound(q="x", config=config)
        assert "a 0" in bound(q="x", config={"cache": True}).a and "a 1" in bound(q="x", config={"cache": True}).a
        assert all({} == request.params for request in ours.seen)


@pytest.mark.parametrize("name", ["openai/gpt-5-mini", "openai/o3", "openai/gpt-4o"])
def test_one_spelling_of_max_tokens(name: str) -> None:
    ours = OurLM()
    ours.name = name
    for decoding in ({"max_tokens": 50}, {"max_completion_tokens": 50}, {"max_tokens": None}):
        for quiet in (False, True):
            lm_calls(quiet, "sync", dspy.Predict("q -> a"), EngineLM(ours, temperature=0.2, **decoding), q="x")
    assert [50, 50, 50, 50, None, None] == [request.params.get("max_tokens") for request in ours.seen]
    assert all("max_completion_tokens" not in request.params for request in ours.seen)
    # And back: a reasoning model of DSPy's gets its own spelling.
    with ScriptedServer(lambda body: "hi") as server:
        lm = bridged(server, name="openai/gpt-5-mini", max_tokens=20000, temperature=None)
        assert {"max_tokens": 20000} == lm.decoding
        ask(lm, Request("openai/gpt-5-mini", MESSAGES, {"max_tokens": 20000}))
    assert 20000 == server.bodies[0]["max_completion_tokens"] and "max_tokens" not in server.bodies[0]


def test_tool_calls_and_reasoning_through_the_engine() -> None:
    call: Any = TOOL_CALL
    reply = Reply(None, Usage(1, 2, 1), "m", "tool_calls", (call,), "because")
    lm = EngineLM(OurLM(in_turn(reply)))
    (output,) = lm("x")
    assert "f" == output["tool_calls"][0]["function"]["name"] and "because" == output["reasoning_content"]
    assert {"cached_tokens": 1} == lm.history[0]["usage"]["prompt_tokens_details"]

    def f(x: int) -> int:
        """Return x."""
        return x

    class Calling(dspy.Signature):
        """Call."""

        q: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    plain = dspy.Predict(Calling)
    spec = lower_program(plain, adapter=dspy.JSONAdapter())
    ours = OurLM(in_turn(reply), Capabilities(True, True, True, False))
    with dspy.context(lm=EngineLM(ours), adapter=dspy.JSONAdapter()):
        found = bind(plain, spec, spec.baseline)(q="x", tools=[dspy.Tool(f)])
    assert "f" == found.calls.tool_calls[0].name and {"x": 1} == found.calls.tool_calls[0].args
    assert "f" == ours.seen[0].params["tools"][0]["function"]["name"]  # type: ignore[index,call-overload]


def test_an_image_reaches_our_client_as_content_blocks() -> None:
    class Seeing(dspy.Signature):
        """See."""

        picture: dspy.Image = dspy.InputField()
        a: str = dspy.OutputField()

    plain = dspy.Predict(Seeing)
    spec = lower_program(plain)
    with ScriptedServer(lambda body: chat(a="cat")) as server:
        lm = EngineLM(OpenAICompatible("openai/x", api_base=server.url, api_key="k"))
        picture = dspy.Image("https://x.test/a.png")
        for quiet in (False, True):
            for mode in ("sync", "async"):
                assert "cat" == lm_calls(quiet, mode, bind(plain, spec, spec.baseline), lm, picture=picture).a
        lm.target.close()
    for body in server.bodies:
        assert "https://x.test/a.png" in str([b for b in body["messages"][-1]["content"] if b["type"] == "image_url"])


def test_copies_share_the_target() -> None:
    import copy

    lm = EngineLM(OurLM(), temperature=0.5)
    for other in (lm.copy(), copy.deepcopy(lm), lm.copy(rollout_id=3, temperature=1.0)):
        assert isinstance(other, EngineLM) and other.target is lm.target and other is not lm
    assert {"rollout_id": 3, "temperature": 1.0, "max_tokens": None} == lm.copy(rollout_id=3, temperature=1.0).kwargs

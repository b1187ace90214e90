"""Serving: time-outs, retries, usage and latency per call, and the hook that every call is told to."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from vitrify.programs.lm import LMError
from vitrify.programs.telemetry import attributes_of
from vitrify.signatures.errors import RequestError

import vitrify as front
from tests.commands import HELPDESK, TICKETS, Answers, vitrify
from tests.server import Fault, ScriptedServer, nth
from vitrify.loading import load_program

MESSAGES = [json.loads(line)["message"] for line in TICKETS[:12]]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(Answers()) as running:
        yield running


@pytest.fixture
def calls() -> list[Any]:
    return []


def served(saved: Path, server: ScriptedServer, **more: Any) -> Any:
    return front.load(saved, lm="openai/any", api_base=server.url, **more)


# The hook -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_every_call_is_told(own: bool, saved: Path, artifact: Any, server: ScriptedServer, calls: list[Any]) -> None:
    program = load_program(f"{HELPDESK}/program.py:Helpdesk") if own else None
    began = time.time_ns()
    with served(saved, server, hook=calls.append, program=program) as desk:
        answer = desk(message=MESSAGES[0])
        asyncio.run(desk.acall(message=MESSAGES[1]))
    assert len(calls) == len(server.bodies) == 2 * len(artifact.predictors)
    for call, body in zip(calls, server.bodies, strict=True):
        assert list(call.request.messages) == body["messages"]
        assert (call.program, call.sha256, call.error) == (artifact.name, artifact.sha256, None)
        assert began <= call.began <= time.time_ns() and 0 < call.seconds < 30
        assert server.url.removesuffix("/v1") in call.endpoint
    half = calls[: len(calls) // 2]
    assert sum(call.reply.usage.prompt_tokens for call in half) == answer.get_lm_usage()["openai/any"]["prompt_tokens"]


def test_threads_tell_what_is_theirs(saved: Path, artifact: Any, server: ScriptedServer, calls: list[Any]) -> None:
    with served(saved, server, hook=calls.append) as desk, ThreadPoolExecutor(6) as pool:
        alone = [desk(message=message).toDict() for message in MESSAGES]
        together = list(pool.map(lambda message: desk(message=message).toDict(), MESSAGES))
    assert alone == together and len(calls) == 2 * len(MESSAGES) * len(artifact.predictors)


def test_a_failed_call_is_told_and_raised(saved: Path, calls: list[Any]) -> None:
    with ScriptedServer(faults=lambda number, body: Fault.status_code(500)) as broken:
        desk = served(saved, broken, hook=calls.append, retries=1)
        with pytest.raises(LMError):
            desk(message="hi")
        with pytest.raises(LMError):
            asyncio.run(desk.acall(message="hi"))
        desk.close()
    assert [(None, "server", 2)] * 2 == [(c.reply, c.error.cause, c.error.attempts) for c in calls]


def test_a_hook_that_raises_changes_nothing(
    saved: Path, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(call: Any) -> None:
        raise KeyError("no such meter")

    with served(saved, server, hook=hook) as told, served(saved, server) as untold:
        assert told(message=MESSAGES[0]).toDict() == untold(message=MESSAGES[0]).toDict()
    assert "the hook of Helpdesk raised KeyError: 'no such meter'" in caplog.text


@pytest.mark.parametrize("hook", ["statsd", 3])
def test_what_is_no_hook(hook: Any, saved: Path) -> None:
    with pytest.raises(RequestError, match="`hook` is `opentelemetry`"):
        front.load(saved, hook=hook)


# OpenTelemetry --------------------------------------------------------------------------------------------------------


@pytest.fixture
def spans() -> tuple[Any, Any]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test"), exporter


def test_spans_have_the_names_of_the_conventions(
    saved: Path, artifact: Any, server: ScriptedServer, spans: tuple[Any, Any]
) -> None:
    tracer, exporter = spans
    with served(saved, server, hook=front.opentelemetry_hook(tracer)) as desk, tracer.start_as_current_span("mine"):
        answer = desk(message=MESSAGES[0])
    *found, mine = exporter.get_finished_spans()
    assert len(artifact.predictors) == len(found)
    known = {
        value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI") and isinstance(value, str)
    }
    for span in found:
        assert ("chat any", trace.SpanKind.CLIENT) == (span.name, span.kind)
        assert span.parent is not None and span.parent.span_id == mine.context.span_id
        assert mine.start_time <= span.start_time < span.end_time <= mine.end_time + 1_000_000
        values = dict(span.attributes)
        assert {name for name in values if name.startswith("gen_ai.")} <= known
        assert ("chat", "openai", "any") == tuple(
            values[f"gen_ai.{name}"] for name in ("operation.name", "provider.name", "request.model")
        )
        assert "127.0.0.1" == values["server.address"] and str(values["server.port"]) in server.url
        assert not any(MESSAGES[0][:10] in str(value) for value in values.values())
    total = sum(span.attributes["gen_ai.usage.input_tokens"] for span in found)
    assert total == answer.get_lm_usage()["openai/any"]["prompt_tokens"]


def test_content_is_told_where_asked(saved: Path, server: ScriptedServer, spans: tuple[Any, Any]) -> None:
    tracer, exporter = spans
    with served(saved, server, hook=front.opentelemetry_hook(tracer, content=True)) as desk:
        desk(message=MESSAGES[0])
    span = exporter.get_finished_spans()[0]
    asked = json.loads(span.attributes["gen_ai.input.messages"])
    assert MESSAGES[0] in asked[-1]["parts"][0]["content"] and "system" == asked[0]["role"]
    (said,) = json.loads(span.attributes["gen_ai.output.messages"])
    assert "assistant" == said["role"] and "[[ ##" in said["parts"][0]["content"] and "stop" == said["finish_reason"]


def test_errors_and_settings_are_told(
    saved: Path, calls: list[Any], spans: tuple[Any, Any], tmp_path: Path, artifact: Any
) -> None:
    from tests.edited import save_edited

    tracer, exporter = spans
    decoding = {"temperature": 0.5, "max_tokens": 99, "stop": "END", "seed": 7, "logit_bias": {"1": 2}}
    path = save_edited(artifact, tmp_path / "a.json", lambda data: data["predictors"][0].update(decoding=decoding))
    with ScriptedServer(faults=lambda number, body: Fault.status_code(429)) as busy:
        desk = front.load(path, lm="azure/any", api_base=busy.url, retries=0, hook=front.opentelemetry_hook(tracer))
        with pytest.raises(LMError):
            desk(message="hi")
    (span,) = exporter.get_finished_spans()
    assert trace.StatusCode.ERROR == span.status.status_code
    assert {
        "error.type": "rate_limited", "gen_ai.provider.name": "azure.ai.openai", "gen_ai.request.seed": 7,
        "gen_ai.request.temperature": 0.5, "gen_ai.request.max_tokens": 99, "gen_ai.request.stop_sequences": ("END",),
    }.items() <= dict(span.attributes).items()  # fmt: skip


def test_the_name_is_enough(saved: Path, server: ScriptedServer) -> None:
    with served(saved, server, hook="opentelemetry") as desk:  # no provider is set: nothing is recorded, nothing fails
        assert desk(message="hi").toDict()


def test_the_offline_model_has_a_provider_of_its_own(saved: Path, calls: list[Any]) -> None:
    front.load(saved, hook=calls.append)(message="hi")
    values = attributes_of(calls[0], content=False)
    assert ("vitrify", "embedded") == (values["gen_ai.provider.name"], values["gen_ai.request.model"])


def test_without_the_package_it_is_one_sentence(saved: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None; import vitrify\n"
        f"try: vitrify.load({str(saved)!r}, hook='opentelemetry')\n"
        "except vitrify.RequestError as error: sys.stdout.write(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "vitrify[otel]" in done.stdout


# Time-outs and retries ------------------------------------------------------------------------------------------------


def test_a_timeout(saved: Path) -> None:
    with ScriptedServer(faults=lambda number, body: Fault("hang")) as slow:
        desk, began = served(saved, slow, timeout=0.2, retries=0), time.monotonic()
        with pytest.raises(LMError) as caught:
            desk(message="hi")
        desk.close()
    assert "timeout" == caught.value.cause and time.monotonic() - began < 5


def test_retries(saved: Path) -> None:
    with ScriptedServer(Answers(), faults=nth({0: Fault.status_code(503)})) as once, pytest.raises(LMError):
        served(saved, once, retries=0)(message="hi")
    with ScriptedServer(Answers(), faults=nth({0: Fault.status_code(503)})) as once:
        assert served(saved, once, retries=1)(message="hi").toDict()


@pytest.mark.parametrize("more, said", [
    ({"timeout": 0}, "above 0"), ({"timeout": "soon"}, "above 0"), ({"retries": -1}, "from 0"),
    ({"retries": 0.5}, "from 0"), ({"lm": "embedded", "api_base": None, "timeout": 3}, "dspy.LM"),
])  # fmt: skip
def test_what_they_may_be(more: dict[str, Any], said: str, saved: Path) -> None:
    with pytest.raises(RequestError, match=said):
        front.load(saved, **{"lm": "any", "api_base": "http://127.0.0.1:9/v1", **more})


def test_the_command_has_them(saved: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"message": message}) + "\n" for message in MESSAGES[:4]))

    def fault(number: int, body: dict[str, Any]) -> Fault | None:
        return Fault("hang") if MESSAGES[1] in str(body["messages"][-1]) else None

    with ScriptedServer(Answers(), faults=fault) as server:
        at = ("--input", rows, "--lm", "any", "--api-base", server.url, "--timeout", 0.3, "--retries", 0, "--usage")
        found = vitrify("run", saved, *at)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert 1 == found.code and [False, True, False, False] == ["error" in line for line in lines]
    assert lines[1]["_usage"]["seconds"] >= 0.3 and all(
        line["_usage"]["calls"] >= 1 for line in lines if "error" not in line
    )
    refused = vitrify("run", saved, "-i", "message=hi", "--timeout", 3)
    assert 2 == refused.code and "dspy.LM" in refused.sentence


# What a call took -----------------------------------------------------------------------------------------------------


def test_a_prediction_says_what_it_took(saved: Path, artifact: Any) -> None:
    with ScriptedServer(Answers(), latency=0.05) as server, served(saved, server) as desk:
        answer = desk(message=MESSAGES[0])
        assert answer.calls == len(server.bodies)
        assert 0.05 * answer.calls <= answer.seconds < 20
        assert asyncio.run(desk.acall(message=MESSAGES[0])).seconds >= 0.05


def test_the_command_says_what_a_call_took(saved: Path, artifact: Any) -> None:
    found = json.loads(vitrify("run", saved, "-i", "message=hi", "--usage", "--json").stdout)
    assert set(found.pop("_usage")) == {"calls", "prompt_tokens", "completion_tokens", "seconds"}
    assert found == json.loads(vitrify("run", saved, "-i", "message=hi", "--json").stdout)
    assert "_usage: {" in vitrify("run", saved, "-i", "message=hi", "--usage").stdout

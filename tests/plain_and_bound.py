"""The oracle of the binding tests: run the plain program and the bound one on the same scripted LM, and compare."""

import asyncio
import dataclasses
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dspy
from dspy import lm15
from dspy._vendor.lm15.providers.openai_chat import response_from_openai_chat
from dspy._vendor.lm15.serde import request_to_dict
from dspy.utils.callback import BaseCallback
from vitrify.programs.bind import bind
from vitrify.programs.candidate import Candidate
from vitrify.programs.lm import Capabilities, Reply, Request, Usage
from vitrify.programs.program import lower_program, walk

Answer = Callable[[str, int], Any]


def answer_anything(prompt: str, number: int) -> str:
    """Answer what the end of the prompt asks for: texts that depend on it, and a value for every other type."""
    asked = prompt[prompt.rindex("Respond with ") :]
    typed = re.findall(r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`(?: \(must be formatted as a valid Python ([^)]*)\))?", asked)
    values = {name: VALUES.get(kind, f"{name} {number} {len(prompt)}") for name, kind in typed if name != "completed"}
    if asked.startswith("Respond with a JSON object"):
        return json.dumps(values)
    parts = [f"[[ ## {name} ## ]]\n{v if isinstance(v, str) else json.dumps(v)}" for name, v in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


VALUES: dict[str, Any] = {"int": 7, "bool": True, "float": 0.5, "list[str]": ["x", "y"], "dict[str, str]": {"a": "b"}}


class Engine:
    """An engine of DSPy's that answers as told, and keeps what it was asked."""

    def __init__(self, answer: Answer = answer_anything, *, params: tuple[str, ...] = (), schema: bool = False) -> None:
        self.answer = answer
        self.seen: list[dict[str, Any]] = []
        self.supported_params = frozenset(params)
        self.supports_response_schema = schema
        self.supports_function_calling = False
        self.supports_reasoning = False

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.seen.append(request_to_dict(request))
        said = self.answer(_text(request), len(self.seen) - 1)
        if isinstance(said, Exception):
            raise said
        message = said if isinstance(said, dict) else {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        body = {"id": "x", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        return response_from_openai_chat({**body, "usage": usage}, model="m")

    def stream(self, request: lm15.Request) -> Any:
        for event in lm15.response_to_events(self.complete(request)):
            delta = getattr(event, "delta", None)
            if isinstance(delta, lm15.TextDelta):
                for piece in re.findall(r"\s+|\S{1,5}", delta.text):
                    yield dataclasses.replace(event, delta=dataclasses.replace(delta, text=piece))
            else:
                yield event


class AsyncEngine:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return self.engine.complete(request)

    async def stream(self, request: lm15.Request) -> Any:
        for event in self.engine.stream(request):
            yield event


def _text(request: lm15.Request) -> str:
    return "".join(getattr(part, "text", "") for part in request.messages[-1].parts)


def scripted(answer: Answer = answer_anything, **options: Any) -> Any:
    """Return a dspy.LM whose engine is `lm.engine`."""
    known = {key: options.pop(key) for key in ("params", "schema") if key in options}
    engine = Engine(answer, **known)
    return dspy.LM("test/m", engine=engine, async_engine=AsyncEngine(engine), cache=False, num_retries=0, **options)


def in_turn(*said: Any) -> Answer:
    """Return an answer function that says one thing after the other, and repeats the last."""
    return lambda prompt, number: said[min(number, len(said) - 1)]


def chat(**values: Any) -> str:
    """Return a reply in the chat format."""
    parts = [f"[[ ## {k} ## ]]\n{v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


class OurLM:
    """A language model of vitrify's own protocol."""

    name = "openai/stub"
    endpoint = "stub"

    def __init__(
        self, answer: Answer = answer_anything, capabilities: Capabilities = Capabilities(True, True, False, False)
    ) -> None:
        self.answer = answer
        self.capabilities = capabilities
        self.seen: list[Request] = []

    def complete(self, request: Request) -> Reply:
        self.seen.append(request)
        content: Any = request.messages[-1]["content"]
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        said = self.answer(content, len(self.seen) - 1)
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, Reply) else Reply(said, Usage(3, 2), "m")

    async def acomplete(self, request: Request) -> Reply:
        return self.complete(request)

    def close(self) -> None:
        pass


class Events(BaseCallback):
    """Every event of DSPy's callbacks, in order: what happened, to an instance of which class, with what."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def _start(self, what: str, instance: Any, inputs: Any) -> None:
        kept = {key: value for key, value in inputs.items() if key not in ("signature", "self")}
        self.seen.append((what, type(instance).__name__, repr(kept)))

    def _end(self, what: str, outputs: Any, exception: Any) -> None:
        self.seen.append((what, "", f"{outputs!r} {type(exception).__name__}"))


for _kind in ("module", "lm", "adapter_format", "adapter_parse", "tool"):

    def _start(self: Any, call_id: str, instance: Any, inputs: Any, what: str = f"{_kind}_start") -> None:
        self._start(what, instance, inputs)

    def _end(self: Any, call_id: str, outputs: Any, exception: Any = None, what: str = f"{_kind}_end") -> None:
        self._end(what, outputs, exception)

    setattr(Events, f"on_{_kind}_start", _start)
    setattr(Events, f"on_{_kind}_end", _end)


class Scope:
    """What the evaluator puts into `dspy.settings.vitrify_scope`."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def reparsed(self, path: str) -> None:
        self.paths.append(path)


@dataclass
class Seen:
    """What can be told apart from outside of a run."""

    requests: list[Any]
    output: Any
    trace: list[Any]
    history: list[Any]
    module_history: int
    usage: Any
    events: list[Any] = field(default_factory=list)
    scope: list[str] = field(default_factory=list)


def run(
    program: Any,
    inputs: dict[str, Any],
    lm: Any,
    *,
    mode: str = "sync",
    events: bool = False,
    call: Callable[[Any], Any] | None = None,
    **settings: Any,
) -> Seen:
    """Run a program once and return what was seen; exceptions are an output."""
    recorder, scope, before = Events(), Scope(), len(program.history)
    context: dict[str, Any] = {"lm": lm, "trace": [], "track_usage": True, "vitrify_scope": scope, **settings}
    if events:
        context["callbacks"] = [recorder]
    with dspy.context(**context):
        try:
            if call is not None:
                output = call(program)
            elif mode == "async":
                output = asyncio.run(program.acall(**inputs))
            else:
                output = program(**inputs)
        except Exception as error:
            output = error
        trace = [_step(step) for step in dspy.settings.trace]
    usage = output.get_lm_usage() if isinstance(output, dspy.Prediction) else None
    history = [
        {key: repr(entry[key]) for key in ("prompt", "messages", "kwargs", "outputs", "usage", "cost", "model")}
        for entry in lm.history
    ]
    return Seen(
        lm.engine.seen, _value(output), trace, history, len(program.history) - before, usage, recorder.seen, scope.paths
    )


def _step(step: Any) -> Any:
    predictor, inputs, prediction = step
    return type(predictor).__name__, predictor.signature.instructions, repr(inputs), _value(prediction)


def _value(output: Any) -> Any:
    if isinstance(output, Exception):
        return type(output).__name__
    if isinstance(output, dspy.Prediction):
        return type(output).__name__, repr(list(output.items()))
    return repr(output)


def check(
    plain: Any,
    inputs: dict[str, Any],
    *,
    lm: Callable[[], Any] = scripted,
    change: Callable[[Candidate], Candidate] | None = None,
    by_hand: Any = None,
    program: Any = None,
    **options: Any,
) -> Seen:
    """Run `by_hand or plain`, and `plain` bound, on the same script, sync and async; they must be equal.

    `change` makes another candidate of level 0; `by_hand` is the plain program changed in the same way.
    """
    adapter = options.get("adapter")
    seen: list[Seen] = []
    for mode in options.pop("modes", ("sync", "async")):
        spec = lower_program(plain, adapter=adapter)
        candidate = change(spec.baseline) if change else spec.baseline
        bound = bind(plain, spec, candidate)
        for events in (False, True):
            expected = run(by_hand or plain, inputs, lm(), mode=mode, events=events, **options)
            actual = run(bound, inputs, lm(), mode=mode, events=events, **options)
            seen.append(actual)
            for name in (f.name for f in dataclasses.fields(Seen)):
                if name != "scope":
                    wanted, got = getattr(expected, name), getattr(actual, name)
                    assert wanted == got, f"{mode}, events={events}, {name}: {_difference(wanted, got)}"
    return seen[0]


def _difference(wanted: Any, got: Any) -> str:
    texts = [repr(wanted), repr(got)]
    at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    return f"at {at}: {texts[0][max(0, at - 60) : at + 90]} | {texts[1][max(0, at - 60) : at + 90]}"


def paths(program: Any) -> list[str]:
    """Return the paths of a program's predictors."""
    return [item.path for item in walk(program)]

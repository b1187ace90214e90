"""DSPy's own modules and helpers on a bound program: ReAct, Refine, BestOfN, Parallel, asyncify, streaming, usage."""

import asyncio
import itertools
from typing import Any

from .plain_and_bound import OurLM, answer_anything, chat, check, in_turn, run, scripted

import dspy  # isort: skip
import pytest
from dspy import lm15
from dspy.streaming import StreamListener
from vitrify.programs.bind import bind
from vitrify.programs.bridge import EngineLM
from vitrify.programs.lm import LMError
from vitrify.programs.planned import Planned
from vitrify.programs.program import lower_program, walk


def bound_of(program: Any, **changes: Any) -> Any:
    spec = lower_program(program)
    candidate = spec.baseline
    for path in spec.baseline.params if changes else ():
        candidate = candidate.with_params(path, **changes)
    return bind(program, spec, candidate)


class Agent(dspy.Module):
    """An agent whose tools are its own methods."""

    def __init__(self) -> None:
        super().__init__()
        self.helper = dspy.Predict("q -> a")
        self.calls: list[str] = []
        self.react = dspy.ReAct("question -> answer", tools=[self.look, dspy.Tool(self.fail, name="fail")], max_iters=4)

    def look(self, q: str) -> str:
        """Look something up."""
        self.calls.append(q)
        return str(self.helper(q=q).a)

    def fail(self) -> str:
        """Fail."""
        raise ValueError("the tool is broken")

    def forward(self, question: str) -> Any:
        return self.react(question=question)

    async def aforward(self, question: str) -> Any:
        return await self.react.acall(question=question)


def step(tool: str, **arguments: Any) -> str:
    return chat(next_thought="hm", next_tool_name=tool, next_tool_args=arguments)


SCRIPT = (step("look", q="x"), chat(a="found"), step("fail"), step("finish"), chat(reasoning="r", answer="done"))


def test_react_with_tools_of_the_module_and_a_broken_one() -> None:
    plain = Agent()
    seen = check(plain, {"question": "?"}, lm=lambda: scripted(in_turn(*SCRIPT)))
    assert "the tool is broken" in seen.output[1] and "done" in seen.output[1]
    assert 5 == len(seen.trace) == len(seen.requests)
    bound = bound_of(plain)
    before = len(plain.calls)
    with dspy.context(lm=scripted(in_turn(*SCRIPT)), trace=[]):
        bound(question="?")
        # The tool is the copy's, and so is the predictor that it calls.
        assert all(isinstance(predictor, Planned) for predictor, _, _ in dspy.settings.trace)
    assert before == len(plain.calls) == len(bound.calls) - 1


TOO_LONG = lm15.ContextLengthError("too long")


@pytest.mark.parametrize(
    "script",
    [
        (step("fail"), step("look", q="x"), chat(a="y"), TOO_LONG, step("finish"), chat(reasoning="r", answer="ok")),
        (TOO_LONG, chat(reasoning="r", answer="at once")),
        (step("fail"), step("fail"), step("fail"), TOO_LONG, TOO_LONG, TOO_LONG, chat(reasoning="r", answer="ok")),
        (step("no such tool"), "still nonsense"),
        (lm15.ServerError("down", status=500),),
    ],
)
def test_react_truncates_gives_up_and_fails_as_dspy_does(script: Any) -> None:
    check(Agent(), {"question": "?"}, lm=lambda: scripted(in_turn(*script)))


def test_react_truncates_over_our_own_lm() -> None:
    too_long = LMError("too long", cause="context_overflow")
    script = (step("fail"), step("fail"), too_long, step("finish"), chat(reasoning="r", answer="ok"))
    for quiet in (False, True):
        lm = OurLM(in_turn(*script))
        with dspy.context(lm=EngineLM(lm), disable_history=quiet):
            assert "ok" == bound_of(Agent())(question="?").answer
        assert 5 == len(lm.seen)


# Refine and BestOfN copy the bound module, set copies of the LM, and look the predictors of the trace up.


class Two(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("q -> draft")
        self.final = dspy.ChainOfThought("q, draft -> a")

    def forward(self, q: str) -> Any:
        return self.final(q=q, draft=self.draft(q=q).draft)

    async def aforward(self, q: str) -> Any:
        return self.forward(q)


class Wrapped(dspy.Module):
    def __init__(self, kind: Any, threshold: float) -> None:
        super().__init__()
        self.best = kind(module=Two(), N=3, reward_fn=by_length, threshold=threshold)

    def forward(self, q: str) -> Any:
        return self.best(q=q)

    async def aforward(self, q: str) -> Any:
        return self.best(q=q)


def by_length(args: Any, prediction: Any) -> float:
    return float(len(prediction.a) % 7)


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
@pytest.mark.parametrize("threshold", [1.0, 100.0])
def test_best_of_n_and_refine_inside_and_around(kind: Any, threshold: float) -> None:
    seen = check(Wrapped(kind, threshold), {"q": "x"})
    plain = Two()
    runs = [
        run(kind(module=module, N=3, reward_fn=by_length, threshold=threshold), {"q": "x"}, scripted())
        for module in (plain, bound_of(plain))
    ]
    assert runs[0] == runs[1]
    assert len(seen.requests) == len(runs[0].requests)
    assert threshold < 10 or len(seen.requests) == (6 if kind is dspy.BestOfN else 8)


def test_refine_sends_its_hints_to_bound_predictors() -> None:
    seen = check(Wrapped(dspy.Refine, 100.0), {"q": "x"})
    hinted = [request for request in seen.requests if "hint_" in str(request)]
    assert 4 <= len(hinted)


def test_refine_around_a_single_bound_predictor() -> None:
    for plain in (dspy.Predict("q -> a"), dspy.ChainOfThought("q -> a")):
        runs = [
            run(dspy.Refine(module=m, N=2, reward_fn=by_length, threshold=100.0), {"q": "x"}, scripted())
            for m in (plain, bound_of(plain))
        ]
        assert runs[0] == runs[1] and 2 < len(runs[0].requests)


def test_rollouts_are_part_of_a_requests_identity_and_never_on_the_wire() -> None:
    for quiet in (False, True):
        lm = OurLM()
        with dspy.context(lm=EngineLM(lm, max_tokens=9), disable_history=quiet, trace=[]):
            dspy.BestOfN(module=bound_of(Two()), N=3, reward_fn=by_length, threshold=100.0)(q="x")
        assert [0, 0, 1, 1, 2, 2] == [request.replicate for request in lm.seen]
        assert all({"temperature": 1.0, "max_tokens": 9} == request.params for request in lm.seen)


# Parallel, asyncify, batch.


def test_parallel_batch_and_asyncify() -> None:
    plain, same = Two(), lambda text, number: answer_anything(text, 0)
    results = []
    for program in (plain, bound_of(plain)):
        lm = scripted(same)
        with dspy.context(lm=lm, trace=[]):
            pairs = [(program, dspy.Example(q="x" * n).with_inputs("q")) for n in range(6)]
            found = dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)
            batch = program.batch([example for _, example in pairs], num_threads=2, disable_progress_bar=True)
            later = asyncio.run(dspy.asyncify(program)(q="x"))
            results.append(([repr(list(p.items())) for p in (*found, *batch, later)], len(lm.engine.seen)))
    assert results[0] == results[1] and 26 == results[0][1]


def test_async_calls_in_flight_do_not_mix() -> None:
    bound = bound_of(Two())

    async def work() -> list[Any]:
        with dspy.context(lm=scripted(lambda text, number: answer_anything(text, 0))):
            return list(await asyncio.gather(*(bound.acall(q="x" * n) for n in range(8))))

    found = asyncio.run(work())
    with dspy.context(lm=scripted(lambda text, number: answer_anything(text, 0))):
        assert [bound(q="x" * n).toDict() for n in range(8)] == [p.toDict() for p in found]


# Streaming and status messages.


class Status(dspy.streaming.StatusMessageProvider):
    def module_start_status_message(self, instance: Any, inputs: Any) -> str:
        return f"{type(instance).__name__} starts"

    def lm_end_status_message(self, outputs: Any) -> str:
        return "said"


def streamed(program: Any, lm: Any, **options: Any) -> list[str]:
    async def work() -> list[str]:
        with dspy.context(lm=lm):
            stream = dspy.streamify(program, **options)
            return [describe(item) async for item in stream(q="x")]

    return asyncio.run(work())


def describe(item: Any) -> str:
    if isinstance(item, dspy.Prediction):
        return repr(list(item.items()))
    if hasattr(item, "signature_field_name"):
        return f"{item.predict_name}.{item.signature_field_name}: {item.chunk!r} {item.is_last_chunk}"
    return str(getattr(item, "message", type(item).__name__))


def test_streaming_and_status_messages() -> None:
    plain = Two()
    for listening, status in itertools.product((False, True), repeat=2):
        seen = []
        for program in (plain, bound_of(plain)):
            options: dict[str, Any] = {"is_async_program": False}
            if listening:
                options["stream_listeners"] = [StreamListener("draft"), StreamListener("a")]
            if status:
                options["status_message_provider"] = Status()
            seen.append(streamed(program, scripted(), **options))
        assert seen[0] == seen[1]
        assert not listening or any(text.startswith("draft.draft: ") for text in seen[0])
        assert not status or "Predict starts" in seen[0]


class OneStep(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = dspy.Predict("q -> a")

    async def aforward(self, q: str) -> Any:
        return await self.p.acall(q=q)


def test_streaming_an_async_program() -> None:
    plain = OneStep()
    seen = [
        streamed(program, scripted(), is_async_program=True, stream_listeners=[StreamListener("a")])
        for program in (plain, bound_of(plain))
    ]
    assert seen[0] == seen[1] and any(text.startswith("p.a: ") for text in seen[0])
    # Over one of our own language models the reply is cut into words when it is there, so that listeners hear it.
    ours = streamed(bound_of(plain), EngineLM(OurLM()), is_async_program=True, stream_listeners=[StreamListener("a")])
    assert seen[0][-1] == ours[-1] and any(text.startswith("p.a: ") for text in ours)


# Usage, history, callbacks.


def test_usage_and_history() -> None:
    plain = Two()
    for lm in (scripted, lambda: EngineLM(OurLM())):
        found = []
        for program in (plain, bound_of(plain)):
            model = lm()
            with dspy.context(lm=model, track_usage=True):
                prediction = program(q="x")
            found.append(
                (prediction.get_lm_usage(), len(model.history), len(program.history), len(program.draft.history))
            )
        assert found[0][0] == found[1][0] and 6 == next(iter(found[0][0].values()))["prompt_tokens"]
        assert (2, 2, 1) == found[1][1:]
        plain.history.clear()
        plain.draft.history.clear()
    with dspy.context(lm=EngineLM(OurLM()), track_usage=True, disable_history=True):
        assert prediction.get_lm_usage() == bound_of(plain)(q="x").get_lm_usage()


def test_callbacks_of_predictors_and_of_the_lm() -> None:
    from .plain_and_bound import Events

    found = []
    for bound in (False, True):
        ours, theirs, plain = Events(), Events(), Two()
        plain.draft.callbacks = [ours]
        program: Any = bound_of(plain) if bound else plain
        run(program, {"q": "x"}, scripted(callbacks=[theirs]))
        found.append((ours.seen, theirs.seen))
    assert found[0] == found[1]
    assert ["module_start", "module_end"] == [event[0] for event in found[0][0]] and 4 == len(found[0][1])


def test_the_trace_holds_the_bound_predictors() -> None:
    bound = bound_of(Two(), instruction="Else.")
    with dspy.context(lm=scripted(), trace=[]):
        bound(q="x")
        steps = dspy.settings.trace
    assert [item.predictor for item in walk(bound)] == [step[0] for step in steps]
    assert ["draft", "final.predict"] == [step[0].path for step in steps]
    with dspy.context(lm=scripted(), trace=[], max_trace_size=1):
        bound(q="x")
        assert 1 == len(dspy.settings.trace)

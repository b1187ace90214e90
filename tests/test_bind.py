"""A bound program does what the plain one does: requests, outputs, traces, history, usage and callbacks."""

import copy
import functools
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import dspy
import pytest
from vitrify.programs.bind import bind, parameters_of
from vitrify.programs.candidate import Candidate
from vitrify.programs.planned import Bound, Planned
from vitrify.programs.program import lower_program, walk
from vitrify.signatures.errors import ProgramError

from .plain_and_bound import answer_anything, chat, check, in_turn, run, scripted


class Triage(dspy.Signature):
    """Route a message.

    Be {brief}.
    """

    message: str = dspy.InputField()
    hints: list[str] = dspy.InputField(default=["none"])
    urgent: bool = dspy.OutputField()
    score: int = dspy.OutputField(desc="0 to 9")


class Desk(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.triage = dspy.ChainOfThought(Triage)
        self.answer = dspy.Predict("message, urgent: bool -> reply", temperature=0.3, max_tokens=50)

    def forward(self, message: str) -> Any:
        urgent = self.triage(message=message).urgent
        return self.answer(message=message, urgent=urgent)

    async def aforward(self, message: str) -> Any:
        urgent = (await self.triage.acall(message=message)).urgent
        return await self.answer.acall(message=message, urgent=urgent)


def demo(n: int) -> Any:
    return dspy.Example(message=f"m{n}", urgent=True, score=n, reasoning=f"r{n}").with_inputs("message")


ADAPTERS = {
    "none": None,
    "chat": dspy.ChatAdapter(),
    "json": dspy.JSONAdapter(),
    "chat without fallback": dspy.ChatAdapter(use_json_adapter_fallback=False),
    "xml": dspy.XMLAdapter(),
    "two steps": dspy.TwoStepAdapter(scripted()),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_level_0_is_dspy(name: str) -> None:
    seen = check(Desk(), {"message": "hello {x}"}, adapter=ADAPTERS[name])
    assert len(seen.trace) in (0, 1, 2)
    if name in ("none", "chat", "json", "chat without fallback"):
        assert 2 == len(seen.trace) == len(seen.requests)


@pytest.mark.parametrize("params", [(), ("response_format",)])
@pytest.mark.parametrize("schema", [False, True])
def test_level_0_is_dspy_for_every_capability(params: tuple[str, ...], schema: bool) -> None:
    check(Desk(), {"message": "x"}, adapter=dspy.JSONAdapter(), lm=lambda: scripted(params=params, schema=schema))


def test_plans_execute() -> None:
    program = Desk()
    spec = lower_program(program)
    bound = bind(program, spec, spec.baseline)
    assert all(isinstance(item.predictor, Planned) for item in walk(bound))
    assert dict(spec.baseline.params) == dict(parameters_of(bound))


def test_another_candidate_is_the_program_changed_by_hand() -> None:
    changes: dict[str, Any] = {
        "instruction": "Be {very} quick.\n  Or not.",
        "demos": ({"message": "m", "urgent": False, "score": 3, "reasoning": "r"}, {"message": "n", "score": 1}),
    }
    by_hand = Desk()
    by_hand.triage.predict.signature = by_hand.triage.predict.signature.with_instructions(changes["instruction"])
    by_hand.triage.predict.demos = [dspy.Example(**item) for item in changes["demos"]]
    by_hand.answer.config = {"temperature": 0.9}

    def change(candidate: Candidate) -> Candidate:
        changed = candidate.with_params("triage.predict", **changes)
        return changed.with_params("answer", decoding={"temperature": 0.9})

    check(Desk(), {"message": "hello"}, change=change, by_hand=by_hand)


def test_the_format_is_the_candidates() -> None:
    plain = dspy.Predict(Triage)
    spec = lower_program(plain)
    bound = bind(plain, spec, spec.baseline.with_params("self", format="json"))
    for inputs in ({"message": "x"}, {"message": "<<CUSTOM-TYPE-START-IDENTIFIER>>x"}):
        expected = run(plain, inputs, scripted(), adapter=dspy.JSONAdapter())
        assert expected.requests == run(bound, inputs, scripted()).requests
    # In the scope of another adapter than the one at binding it is DSPy's.
    expected = run(plain, {"message": "x"}, scripted(), adapter=dspy.XMLAdapter())
    assert expected.requests == run(bound, {"message": "x"}, scripted(), adapter=dspy.XMLAdapter()).requests


class Inside(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = dspy.Predict("q -> a")

    def forward(self, q: str) -> Any:
        with dspy.context(adapter=dspy.JSONAdapter()):
            self.p(q=q)
        return self.p(q=q)

    async def aforward(self, q: str) -> Any:
        return self.forward(q)


def test_an_adapter_set_in_forward_is_the_one_used() -> None:
    seen = check(Inside(), {"q": "x"})
    assert "JSON object" in str(seen.requests[0]) and "JSON object" not in str(seen.requests[1])


class Shared(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = dspy.Predict("q -> a")
        self.many: Any = [self.one, {"x": [dspy.Predict("q -> a"), self.one]}]
        self.named = OrderedDict(first=self.one, second=dspy.Predict("q -> b"))
        self.pair = Pair(self.one, dspy.Predict("q -> c"))
        self.call = functools.partial(self.one, q="fixed")
        self.method = self.one.__call__
        self.lock = threading.Lock()
        self.stream = (i for i in range(3))
        self.seen: list[str] = []

    def forward(self, q: str) -> Any:
        self.seen.append(q)
        self.call()
        self.method(q=q)
        self.many[1]["x"][0](q=q)
        self.named["second"](q=q)
        self.pair.right(q=q)
        with self.lock:
            return self.one(q=q)

    async def aforward(self, q: str) -> Any:
        return self.forward(q)


class Pair(NamedTuple):
    left: Any
    right: Any


def test_sharing_partials_methods_containers_locks_and_generators() -> None:
    plain = Shared()
    check(plain, {"q": "x"})
    spec = lower_program(plain)
    bound: Any = bind(plain, spec, spec.baseline)
    assert bound.one is bound.many[0] is bound.many[1]["x"][1] is bound.named["first"] is bound.pair.left
    assert bound.one is bound.call.func is bound.method.__self__
    assert bound.lock is plain.lock and bound.stream is plain.stream
    assert isinstance(bound.named, OrderedDict) and isinstance(bound.pair, Pair)
    assert bound.seen == plain.seen and bound.seen is not plain.seen
    originals = {id(item.predictor) for item in walk(plain)}
    assert all(isinstance(i.predictor, Planned) and id(i.predictor) not in originals for i in walk(bound))
    copied = bound.deepcopy()
    assert copied.one is not bound.one and isinstance(copied.one, Planned)


class Closure(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = dspy.Predict("q -> a")
        self.ask: Any = lambda q: self.p(q=q)

    def forward(self, q: str) -> Any:
        return self.ask(q)

    async def aforward(self, q: str) -> Any:
        return self.forward(q)


def test_a_closure_keeps_the_original_and_the_trace_shows_it() -> None:
    plain = Closure()
    check(plain, {"q": "x"})
    spec = lower_program(plain)
    bound = bind(plain, spec, spec.baseline)
    with dspy.context(lm=scripted(), trace=[]):
        bound(q="x")
        assert not isinstance(dspy.settings.trace[0][0], Bound)


def test_the_original_is_untouched() -> None:
    plain = Desk()
    plain.triage.predict.demos = [demo(1)]
    before = copy.deepcopy(plain.dump_state()), {id(i.predictor) for i in walk(plain)}
    spec = lower_program(plain)
    bound: Any = bind(plain, spec, spec.baseline.with_params("answer", instruction="Else.", decoding={"n": 1}))
    with dspy.context(lm=scripted()):
        bound(message="x")
    bound.triage.predict.demos.append(demo(2))
    bound.answer.config["temperature"] = 1.0
    bound.answer.callbacks.append("x")
    bound.set_lm(scripted())
    bound.answer.fields["reply"] = {"criteria": 1}
    assert before == (plain.dump_state(), {id(i.predictor) for i in walk(plain)})
    assert [] == plain.history == plain.answer.history and [] == plain.answer.callbacks


class Mutating(dspy.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.p = dspy.Predict(Triage)
        self.p.demos = [demo(1), demo(2)]

    def forward(self, message: str) -> Any:
        other = dspy.Signature("message -> reply", "Reply.")
        lm = scripted(in_turn(chat(urgent=True, score=1)))
        p, how = self.p, self.how
        extra: dict[str, Any] = {}
        if how == "append":
            p.demos.append(demo(len(p.demos) + 1))
        elif how == "pop":
            p.demos = p.demos[:1]
        elif how == "in place":
            p.demos[0].message = "changed"
        elif how == "instructions":
            p.signature = p.signature.with_instructions("Changed.")
        elif how == "doc":
            p.signature = p.signature.with_instructions("Mine.")
            p.signature.instructions = "Changed in place."
        elif how == "config":
            p.config = {"temperature": 0.7}
        elif how == "update_config":
            p.update_config(temperature=0.8)
        elif how == "lm":
            p.lm = lm
        else:
            extra = {
                "signature=": {"signature": other},
                "signature string": {"signature": "message -> reply"},
                "demos=": {"demos": [demo(9)]},
                "config=": {"config": {"temperature": 0.9, "rollout_id": 3}},
                "lm=": {"lm": lm},
                "lm=None": {"lm": None},
                "n": {"config": {"n": 3}},
                "tools": {"config": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}},
                "prediction": {"prediction": {"type": "content", "content": "x"}},
                "logprobs": {"config": {"logprobs": True}},
                "unknown input": {"colour": "red"},
                "list in text": {"hints": "text"},
                "none": {"hints": None},
            }[how]
        result = p(message=message, **extra)
        return dspy.Prediction(result=repr(list(result.items())), own=len(lm.engine.seen), all=repr(result.completions))

    async def aforward(self, message: str) -> Any:
        return self.forward(message)


HOW = ["append", "pop", "in place", "instructions", "doc", "config", "update_config", "lm", "signature=",
       "signature string", "demos=", "config=", "lm=", "lm=None", "n", "tools", "prediction", "logprobs",
       "unknown input", "list in text", "none"]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_attributes_and_arguments_of_a_call(how: str) -> None:
    for adapter in (None, dspy.JSONAdapter()):
        seen = []
        for bound in (False, True):
            program: Any = Mutating(how)
            if bound:
                spec = lower_program(program, adapter=adapter)
                program = bind(program, spec, spec.baseline)
            seen.append([run(program, {"message": m}, scripted(), adapter=adapter) for m in ("a", "b")])
        assert seen[0] == seen[1]


def test_a_predictors_own_lm() -> None:
    own = scripted(in_turn(chat(reply="mine")), temperature=0.2)
    plain = Desk()
    plain.answer.lm = own
    seen = check(plain, {"message": "x"})
    assert 1 == len(seen.requests) and "mine" in seen.output[1]
    assert 8 == len(own.engine.seen) and 1 == len({str(request) for request in own.engine.seen})


def test_context_changes_between_calls() -> None:
    plain = Desk()
    spec = lower_program(plain)
    bound = bind(plain, spec, spec.baseline)
    for adapter in ADAPTERS.values():
        expected, actual = (run(p, {"message": "m"}, scripted(), adapter=adapter) for p in (plain, bound))
        assert (expected.requests, expected.output) == (actual.requests, actual.output)


def test_two_bound_candidates_run_in_parallel_and_do_not_see_each_other() -> None:
    plain = Desk()
    spec = lower_program(plain)
    programs = [bind(plain, spec, spec.baseline.with_params("answer", instruction=f"As {i}.")) for i in range(2)]
    lms = [scripted(lambda prompt, number: answer_anything(prompt, 0)) for _ in programs]
    alone = [run(p, {"message": "m"}, scripted(lambda t, n: answer_anything(t, 0))).output for p in programs]
    barrier, results = threading.Barrier(2), [[], []]  # type: ignore[var-annotated]

    def work(index: int) -> None:
        barrier.wait()
        with dspy.context(lm=lms[index], trace=[]):
            for _ in range(20):
                prediction = programs[index](message="m")
                results[index].append(("Prediction", repr(list(prediction.items()))))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert [alone[index]] * 20 == results[index]
        told = [str(request) for request in lms[index].engine.seen]
        assert 40 == len(told) and not any(f"As {1 - index}." in text for text in told)


def test_refusals() -> None:
    plain = Desk()
    spec = lower_program(plain)
    with pytest.raises(ProgramError, match="names predictors of the program"):
        bind(plain, spec, Candidate({"nowhere": spec.baseline["answer"]}))
    plain.late = dspy.Predict("q -> a")
    with pytest.raises(ProgramError, match="lower the program again"):
        bind(plain, spec, spec.baseline)


def test_a_bound_program_can_be_lowered_bound_copied_saved_and_loaded(tmp_path: Any) -> None:
    plain = Desk()
    plain.triage.predict.demos = [demo(1)]
    spec = lower_program(plain)
    changed = spec.baseline.with_params("answer", instruction="Else.", format="json", decoding={"top_p": 0.5})
    bound = bind(plain, spec, changed)
    again_spec = lower_program(bound)
    assert changed.to_json() == again_spec.baseline.to_json() and all(i.tunable for i in again_spec.predictors)
    expected = run(bound, {"message": "m"}, scripted())
    for other in (bind(bound, again_spec, again_spec.baseline), copy.deepcopy(bound), bound.deepcopy()):
        assert all(isinstance(item.predictor, Planned) and item.predictor._plan_holds({}) for item in walk(other))
        assert expected == run(other, {"message": "m"}, scripted())
    level0 = bind(plain, spec, spec.baseline.with_params("answer", instruction="Else."))
    level0.save(tmp_path / "state.json")
    loaded, reloaded = Desk(), bind(plain, spec, spec.baseline)
    loaded.load(tmp_path / "state.json")
    reloaded.load(tmp_path / "state.json")
    wanted = run(level0, {"message": "m"}, scripted())
    assert wanted.requests[0] == run(loaded, {"message": "m"}, scripted()).requests[0]
    assert run(loaded, {"message": "m"}, scripted()).requests == run(reloaded, {"message": "m"}, scripted()).requests
    assert plain.dump_state() == bind(plain, spec, spec.baseline).dump_state()

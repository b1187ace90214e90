"""supply(): the levels of every slot; the first at once, the others from passes that run beside the search."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .background import Background, Coming
from .budget import BudgetExhausted
from .run import Run, Side
from .state import Job, Levels, State
from .strategy import Accepted, DemoLevel, InstructionLevel, Needs, Provenance, View


class Supply:
    """The levels of a compile, those that are still under way among them.

    Bootstrap runs the program over the training rows; proposals are asked of the prompt model, and wait for the traces
    only where they need them. Both share the queue with the search, which starts with the levels that are known at
    once: what the user wrote, and labelled demonstrations.

    Attributes:
        first: The levels that the search starts with.
    """

    def __init__(self, state: State, run: Run) -> None:
        self._run, self._job = run, state.job
        self._sides = {name: Side(run, name, state.job.teacher) for name in ("bootstrap", "propose")}
        self._early = self._demonstrations(_view(state, self._sides["propose"], ()), half=True)
        self.first = levels_of(state.job, {}, self._early, None)
        for name in self._sides:
            run.ledger.append("pass", {"name": name})
        traces = _view(state, self._sides["bootstrap"], ())
        self._accepted = Background("bootstrap", lambda: self._bootstrap(traces), self._failed)
        view = _view(state, self._sides["propose"], Coming(self._accepted.future))
        self._view = view
        self._instructions = Background("propose", lambda: self._propose(view), self._failed)
        self._written: Levels | None = None
        self._joined: tuple[Levels, tuple[Accepted, ...]] | None = None

    def _failed(self, error: BaseException) -> None:
        self._run.alarm = self._run.alarm or error

    def _bootstrap(self, view: View) -> tuple[Accepted, ...]:
        try:
            return self._job.strategy.bootstrap(view)
        except BudgetExhausted as error:
            self._run.cut = f"bootstrap was cut short: {error}"
            return ()

    def _propose(self, view: View) -> Mapping[str, tuple[InstructionLevel, ...]]:
        return self._job.strategy.instructions(view) if self._job.options.instructions else {}

    def _demonstrations(self, view: View, *, half: bool = False) -> dict[str, tuple[DemoLevel, ...]]:
        options = self._job.options
        if not options.demo_sets or not options.max_demos:
            return {}
        if half:
            view = replace(view, needs=replace(view.needs, demo_sets=(options.demo_sets + 1) // 2))
        return dict(self._job.strategy.demonstrations(view))

    def with_instructions(self) -> Levels:
        """Wait for the proposals; return the first levels and those."""
        if self._written is None:
            instructions = self._run.wait(self._instructions.future)
            self._sides["propose"].settle()
            self._written = levels_of(self._job, instructions, self._early, self.first)
        return self._written

    def rest(self) -> tuple[Levels, tuple[Accepted, ...]]:
        """Wait for bootstrap too; return all levels, and the accepted traces."""
        if self._joined is None:
            run, written = self._run, self.with_instructions()
            accepted = run.wait(self._accepted.future)
            self._sides["bootstrap"].settle()
            if not accepted:
                run.note(
                    "No training row was answered well enough to become a demonstration; labelled rows may still serve."
                )
            late = self._demonstrations(replace(self._view, accepted=accepted))
            demos = {
                path: _limited((*self._early.get(path, ()), *late.get(path, ())), self._job.options.demo_sets)
                for path in {**self._early, **late}
            }
            self._joined = levels_of(self._job, self._instructions.future.result(), demos, written), accepted
        return self._joined


def _limited(levels: Sequence[DemoLevel], count: int) -> tuple[DemoLevel, ...]:
    return _distinct(levels, _demo_key)[:count]


def _demo_key(level: DemoLevel) -> Any:
    return [dict(demo) for demo in level.demos]


def levels_of(
    job: Job,
    instructions: Mapping[str, Sequence[InstructionLevel]],
    demos: Mapping[str, Sequence[DemoLevel]],
    first: Levels | None,
) -> Levels:
    """Return the levels of every slot, in the order of `first` and then of the program; level 0 is the user's own."""
    baseline = job.target.spec.baseline
    values: dict[str, tuple[Any, ...]] = {}
    for spec in job.target.spec.predictors:
        if not spec.tunable:
            continue
        level0, start = baseline[spec.path], job.start.params.get(spec.path, baseline[spec.path])
        mine = Provenance("user", "as written")
        earlier = Provenance("start", "of the earlier artifact")
        texts = [InstructionLevel(level0.instruction, mine), InstructionLevel(start.instruction, earlier)]
        sets = [DemoLevel(level0.demos, (), mine), DemoLevel(start.demos, (), earlier)]
        formats = [level0.format, *(name for name in job.options.formats if name != level0.format)]
        for kind, levels in (
            ("instruction", _distinct([*texts, *instructions.get(spec.path, ())], lambda level: level.text)),
            ("demos", _distinct([*sets, *demos.get(spec.path, ())], _demo_key)),
            ("format", tuple(formats)),
        ):
            if len(levels) > 1:
                values[f"{spec.path}.{kind}"] = levels
    slots = list(dict.fromkeys([*(first.slots if first is not None else ()), *values]))
    return Levels(tuple(slots), {name: values[name] for name in slots}, baseline)


def _distinct(levels: Sequence[Any], key: Any) -> tuple[Any, ...]:
    kept: list[Any] = []
    for level in levels:
        if not any(key(level) == key(other) for other in kept):
            kept.append(level)
    return tuple(kept)


def _view(state: State, runner: Side, accepted: Sequence[Accepted]) -> View:
    job = state.job
    return View(
        spec=job.target.spec,
        code=job.code,
        start=job.start,
        train=state.shown,
        metric=job.metric.name,
        runner=runner,
        seed=job.seed,
        needs=Needs(job.options.instructions, job.options.demo_sets, job.options.max_demos, job.options.accept),
        accepted=accepted,
    )


def source_of(program: Any) -> str:
    """Return a program's source text, or an empty string where Python can't find it."""
    try:
        return inspect.getsource(type(program))
    except (OSError, TypeError):
        return ""


def supply(state: State, run: Run) -> State:
    """Begin bootstrap and proposals, and return the state with the levels that are there at once."""
    return replace(state, supply=Supply(state, run))

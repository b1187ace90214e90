"""Looped: a sealed program's candidate as coroutines on the client's own event loop, without DSPy and without a thread.

What `forward()` does is known as data (dataflow.py), so its steps are run from that: render, ask, parse. The requests
and the values are those of the bound program, which runs wherever this doesn't apply: while bootstrapping, for a
teacher, on a model without a loop, and where a step fails in a way that only the program itself can explain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from ..programs.bridge import EngineLM
from ..programs.flow import Flow, calls_of
from ..programs.planned import Planned, format_in_force
from ..programs.program import walk
from ..signatures.reply import ParseError
from .metered import MeteredLM, Scope
from .outcome import TraceStep


class Unexplained(Exception):
    """A step failed, and the bound program is to say how."""


@dataclass(frozen=True)
class Looped:
    """One candidate of a sealed program.

    Attributes:
        flow: The data flow of `forward()`.
        predictors: What each call executes, by path.
    """

    flow: Flow
    predictors: Mapping[str, Planned]

    @classmethod
    def of(cls, flow: Flow, bound: Any, adapter: Any) -> "Looped | None":
        """Return the candidate that `bound` carries, or None where a call of the flow needs DSPy.

        Args:
            flow: Of the program.
            bound: The bound program.
            adapter: In force while it runs.
        """
        known = {item.path: item.predictor for item in walk(bound)}
        with dspy.context(adapter=adapter):
            ambient = format_in_force()
        found: dict[str, Planned] = {}
        for path in calls_of(flow):
            predictor = known.get(path)
            if not isinstance(predictor, Planned) or predictor.ambient != ambient or ambient is None:
                return None
            own: Any = predictor
            if own.fields or own.callbacks or own.lm is not None or (own.config.get("n") or 1) != 1:
                return None
            found[path] = predictor
        return cls(flow, found)

    async def run(
        self, inputs: Mapping[str, Any], lm: EngineLM, scope: Scope
    ) -> tuple[dict[str, Any] | None, tuple[TraceStep, ...], str]:
        """Return the outputs and the trace; no outputs, and why, where the model's answer couldn't be used.

        Raises:
            LMError: If the server fails.
            Unexplained: If something else goes wrong.
        """
        steps: list[TraceStep] = []
        try:
            flow = self.flow.execute(inputs)
            outputs: Any = None
            while True:
                try:
                    path, asked = flow.send(outputs)
                except StopIteration as stop:
                    return dict(stop.value), tuple(steps), ""
                try:
                    outputs = await self._call(path, asked, lm, scope)
                except ParseError as error:
                    return None, tuple(steps), str(error)
                steps.append((path, asked, outputs))
        except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
            raise Unexplained from error

    async def _call(self, path: str, inputs: Mapping[str, Any], lm: EngineLM, scope: Scope) -> dict[str, Any]:
        """Make one call of the flow: one request, and one further where its reply can't be read."""
        predictor: Any = self.predictors[path]
        target = lm.target
        assert isinstance(target, MeteredLM)
        plans = predictor.plans
        problem = ParseError(None, "a plan", "", "there is none")
        for plan in (plans.main, plans.second):
            if plan is None:
                continue
            if plan is plans.second:
                scope.reparsed(path)
            request = lm._request(plan.request_messages(inputs), plan.request_params(predictor.config, lm.capabilities))
            text = (await target.acomplete_for(request, scope)).text
            try:
                if not text:
                    raise ParseError(None, "a text", "", "there is none")
                fields: dict[str, Any] = plans.parser.parse(text, plan.format)
                return fields
            except ParseError as error:
                problem = error
        raise problem

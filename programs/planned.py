"""Planned: a dspy.Predict that executes its plan where that equals what DSPy would do, and DSPy's path elsewhere.

This module imports dspy at its top and is itself imported only inside functions (bind.py, bridge.py), so that a frozen
program that needs no DSPy never loads it. See docs/decisions/0002.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import dspy
from dspy.adapters.json_adapter import JSONAdapter
from dspy.adapters.utils import apply_output_field_defaults
from dspy.clients._deprecation import adapter_message_call
from dspy.clients.capabilities import planning_scope, prepare_async
from dspy.dsp.utils.settings import settings
from dspy.utils.exceptions import AdapterParseError

from ..signatures.lower import annotations
from ..signatures.prompt import Capabilities, Format, NeedsAdapter, PromptPlan
from ..signatures.reply import ParseError, ReplyParser
from ..signatures.signature import SignatureSpec
from .bridge import EngineLM
from .candidate import PredictorParams
from .program import PredictorSpec

ADAPTER_NAMES: Mapping[Format, str] = {"chat": "ChatAdapter", "json": "JSONAdapter"}


@dataclass(frozen=True)
class ReplyPolicy:
    """What happens when a reply can't be parsed.

    Attributes:
        second_format: The format of one further request, counted like any other; None raises at once. DSPy's
            ChatAdapter silently asks again as JSON, so that is the policy which equals DSPy.
    """

    second_format: Format | None = "json"


DSPY_POLICY = ReplyPolicy()


@dataclass(frozen=True, eq=False)
class Plans:
    """The plans of one predictor; shared by every copy of it, since nothing in it changes."""

    spec: SignatureSpec
    format: Format
    types: Mapping[str, Any]
    demos: tuple[Mapping[str, Any], ...]
    main: PromptPlan
    parser: ReplyParser
    policy: ReplyPolicy

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plans":
        return self

    def second(self) -> PromptPlan | None:
        """Return the plan of the further request, or None where the policy has none."""
        wanted = self.policy.second_format
        if wanted is None or wanted == self.format:
            return None
        return PromptPlan.build(self.spec, format=wanted, demos=self.demos, types=self.types)


class Planned:
    """What a planned predictor adds to `dspy.Predict`; always mixed into the predictor's own class."""

    plans: Plans
    params: PredictorParams
    path: str
    _marks: tuple[Any, ...]

    def _marks_now(self, signature: Any, demos: Any) -> tuple[Any, ...]:
        """Return what must still be identical for the plan to hold."""
        return (signature, signature.__doc__, *demos)

    def _plan_holds(self, kwargs: Mapping[str, Any]) -> bool:
        """Say whether executing the plan now equals what DSPy would do."""
        predictor = cast(Any, self)
        signature = kwargs.get("signature", predictor.signature)
        demos = kwargs.get("demos", predictor.demos)
        now = self._marks_now(signature, demos) if isinstance(signature, type) else ()
        if len(now) != len(self._marks) or any(a is not b for a, b in zip(now, self._marks, strict=True)):
            return False
        if predictor.fields or settings.send_stream is not None or settings.callbacks:
            return False
        adapter = settings.adapter
        if adapter is not None and (
            type(adapter) not in (dspy.ChatAdapter, JSONAdapter) or vars(adapter) != vars(type(adapter)())
        ):
            return False
        lm = kwargs.get("lm") or predictor.lm or settings.lm
        defaults = getattr(lm, "kwargs", {})
        config = {**predictor.config, **kwargs.get("config", {})}
        return bool((config.get("n") or defaults.get("n") or defaults.get("num_generations") or 1) == 1)

    def _own_adapter(self) -> AbstractContextManager[Any]:
        """Return the context in which DSPy's own path uses this predictor's format."""
        adapter = settings.adapter
        if adapter is not None and type(adapter) not in (dspy.ChatAdapter, JSONAdapter):
            return nullcontext()  # Refine sends its hints through an adapter of its own: leave it in place.
        wanted = JSONAdapter if self.plans.format == "json" else dspy.ChatAdapter
        if type(adapter or dspy.ChatAdapter()) is wanted:
            return nullcontext()
        return cast(AbstractContextManager[Any], dspy.context(adapter=wanted()))

    def forward(self, **kwargs: Any) -> Any:
        """Run the predictor, by its plan where that equals DSPy."""
        base = cast(Any, super())
        if not self._plan_holds(kwargs):
            with self._own_adapter():
                return base.forward(**kwargs)
        predictor = cast(Any, self)
        lm, config, signature, _, inputs = predictor._forward_preprocess(**kwargs)
        plans = self.plans
        try:
            messages = plans.main.render(inputs)
        except NeedsAdapter:
            with self._own_adapter():
                return base.forward(**kwargs)
        try:
            fields = self._ask(lm, plans.main, messages, config, signature)
        except AdapterParseError:
            second = plans.second()
            if second is None:
                raise
            note_second_request(self.path)
            fields = self._ask(lm, second, second.render(inputs), config, signature)
        return predictor._forward_postprocess([fields], signature, **inputs)

    async def aforward(self, **kwargs: Any) -> Any:
        """Run the predictor asynchronously, by its plan where that equals DSPy."""
        base = cast(Any, super())
        if not self._plan_holds(kwargs):
            with self._own_adapter():
                return await base.aforward(**kwargs)
        predictor = cast(Any, self)
        lm, config, signature, _, inputs = predictor._forward_preprocess(**kwargs)
        plans = self.plans
        try:
            messages = plans.main.render(inputs)
        except NeedsAdapter:
            with self._own_adapter():
                return await base.aforward(**kwargs)
        try:
            fields = await self._aask(lm, plans.main, messages, config, signature)
        except AdapterParseError:
            second = plans.second()
            if second is None:
                raise
            note_second_request(self.path)
            fields = await self._aask(lm, second, second.render(inputs), config, signature)
        return predictor._forward_postprocess([fields], signature, **inputs)

    def _ask(
        self, lm: Any, plan: PromptPlan, messages: list[dict[str, Any]], config: dict[str, Any], signature: Any
    ) -> dict[str, Any]:
        if isinstance(lm, EngineLM) and lm.direct():
            text, extra = lm.ask(messages, plan.request_params(config, lm.capabilities))
            return self._fields(text, extra, plan.format, signature)
        with planning_scope(lm, config):
            params = _dspy_params(plan, config, lm, signature)
            with adapter_message_call(lm, messages):
                outputs = lm(messages=messages, **params)
        return self._fields(*_first(outputs), plan.format, signature)

    async def _aask(
        self, lm: Any, plan: PromptPlan, messages: list[dict[str, Any]], config: dict[str, Any], signature: Any
    ) -> dict[str, Any]:
        if isinstance(lm, EngineLM) and lm.direct():
            text, extra = await lm.aask(messages, plan.request_params(config, lm.capabilities))
            return self._fields(text, extra, plan.format, signature)
        with planning_scope(lm, config):
            await prepare_async(lm)
            params = _dspy_params(plan, config, lm, signature)
            with adapter_message_call(lm, messages):
                outputs = await lm.acall(messages=messages, **params)
        return self._fields(*_first(outputs), plan.format, signature)

    def _fields(self, text: str | None, extra: Mapping[str, Any], used: Format, signature: Any) -> dict[str, Any]:
        """Return the reply's values, or raise DSPy's own error, which ReAct and Refine know how to treat."""
        if not text:
            raise AdapterParseError(
                adapter_name=ADAPTER_NAMES[used],
                signature=signature,
                lm_response=str(extra or text),
                message="The LM returned an empty or null response.",
            )
        try:
            fields = self.plans.parser.parse(text, used)
        except ParseError as error:
            raise AdapterParseError(
                adapter_name=ADAPTER_NAMES[used], signature=signature, lm_response=text, message=str(error)
            ) from error
        fields = dict(apply_output_field_defaults(signature, fields))
        if extra.get("logprobs"):
            fields["logprobs"] = extra["logprobs"]
        return fields


def note_second_request(path: str) -> None:
    """Tell the evaluation in force, if there is one, that a reply couldn't be parsed and was asked for again."""
    scope = settings.get("vitrify_scope")
    if scope is not None:
        scope.reparsed(path)


def _dspy_params(plan: PromptPlan, config: dict[str, Any], lm: Any, signature: Any) -> dict[str, Any]:
    """Return the keyword arguments that DSPy's adapter hands to `lm`.

    For an LM of DSPy's own the `response_format` is made by DSPy: a legacy `BaseLM` gets a pydantic class there.
    """
    params = plan.request_params(config, Capabilities())
    if plan.format == "json":
        JSONAdapter()._prepare_response_format(lm, params, signature)
    return params


def _first(outputs: list[Any]) -> tuple[str | None, Mapping[str, Any]]:
    output = outputs[0]
    return (output.get("text"), output) if isinstance(output, dict) else (output, {})


def plan_predictor(
    original: dspy.Predict, spec: PredictorSpec, params: PredictorParams, policy: ReplyPolicy
) -> dspy.Predict:
    """Return a planned copy of `original` that carries `params`; the original is left untouched."""
    assert spec.signature is not None
    signature = original.signature
    # Level 0 keeps the user's own demonstration objects: their values may be richer than JSON.
    demos = list(original.demos)
    if params.instruction != spec.level0.instruction:
        signature = signature.with_instructions(params.instruction)
    if params.demos != spec.level0.demos:
        demos = [dspy.Example(**demo) for demo in params.demos]
    types = annotations(original.signature)
    lowered = spec.signature.with_instruction(params.instruction)
    plain = tuple(dict(demo) for demo in demos)
    plans = Plans(
        spec=lowered,
        format=params.format,
        types=types,
        demos=plain,
        main=PromptPlan.build(lowered, format=params.format, demos=plain, types=types),
        parser=ReplyParser(lowered, types),
        policy=policy,
    )
    cls = type(original)
    kind = PlannedPredict if cls is dspy.Predict else type(f"Planned{cls.__name__}", (Planned, cls), {})
    bound: Any = object.__new__(kind)
    bound.__dict__.update(vars(original))
    bound.__dict__.update(
        signature=signature,
        demos=demos,
        config={**original.config, **params.decoding},
        traces=[],
        train=list(original.train),
        history=[],
        callbacks=list(original.callbacks),
        plans=plans,
        params=params,
        path=spec.path,
    )
    bound._marks = bound._marks_now(signature, demos)
    return cast(dspy.Predict, bound)


class PlannedPredict(Planned, dspy.Predict):
    """A plain `dspy.Predict` with a plan."""

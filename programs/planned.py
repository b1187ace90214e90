"""Planned: a dspy.Predict that executes its plan where that equals what DSPy would do, and DSPy's path elsewhere.

This module imports dspy at its top and is itself imported only inside functions (bind.py, bridge.py), so that a frozen
program that needs no DSPy never loads it. See docs/decisions/0002.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, cast

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
TOOL_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")

ATTRIBUTES: Final[frozenset[str]] = frozenset({"path", "params", "plans", "format", "ambient", "policy", "_marks"})
"""What binding adds to a predictor; a class that uses one of these names for itself is left alone."""

PREDICT_ATTRIBUTES: Final[frozenset[str]] = frozenset(
    {"stage", "signature", "fields", "config", "lm", "traces", "train", "demos", "history", "callbacks", "_compiled"}
)
"""What every `dspy.Predict` holds; whatever else a subclass holds may contain modules."""


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

    @functools.cached_property
    def second(self) -> PromptPlan | None:
        """The plan of the further request, or None where the policy has none."""
        wanted = self.policy.second_format
        if wanted is None or wanted == self.format:
            return None
        return PromptPlan.build(self.spec, format=wanted, demos=self.demos, types=self.types)


class Bound:
    """What binding adds to a predictor that DSPy itself runs; always mixed into the predictor's own class.

    Attributes:
        path: Where the predictor is in its program.
        params: The parameters it carries.
        format: The candidate's reply format.
        ambient: The format of the adapter at binding; None where that adapter is the user's own.
        policy: What happens when a reply can't be parsed.
    """

    path: str
    params: PredictorParams
    format: Format
    ambient: Format | None
    policy: ReplyPolicy

    def forward(self, **kwargs: Any) -> Any:
        """Run the predictor as DSPy does, a second request counted."""
        with self._adapter():
            return cast(Any, super()).forward(**kwargs)

    async def aforward(self, **kwargs: Any) -> Any:
        """Run the predictor asynchronously, as DSPy does."""
        with self._adapter():
            return await cast(Any, super()).aforward(**kwargs)

    def _adapter(self) -> AbstractContextManager[Any]:
        """Return the context in which DSPy's own path uses this predictor's format and policy.

        An adapter that isn't the one at binding stays in place: Refine sends its hints through one of its own.
        """
        if self.ambient is None or format_in_force() != self.ambient:
            return nullcontext()
        adapter = JSONAdapter() if self.format == "json" else counting_adapter(self.path, self.policy)
        return cast(AbstractContextManager[Any], dspy.context(adapter=adapter))


class Planned(Bound):
    """A predictor that executes its plan where that equals what DSPy would do."""

    plans: Plans
    _marks: tuple[Any, ...]

    def _plan_holds(self, kwargs: Mapping[str, Any]) -> bool:
        """Say whether executing the plan now equals what DSPy would do."""
        predictor = cast(Any, self)
        signature = kwargs.get("signature", predictor.signature)
        now = marks(signature, kwargs.get("demos", predictor.demos))
        if len(now) != len(self._marks) or any(a is not b for a, b in zip(now, self._marks, strict=True)):
            return False
        if predictor.fields or settings.send_stream is not None or settings.callbacks:
            return False
        if format_in_force() != self.ambient:
            return False
        lm = kwargs.get("lm", predictor.lm) or settings.lm
        if getattr(lm, "supports_decision_requests", False) is True:
            return False
        defaults = getattr(lm, "kwargs", {})
        config = {**predictor.config, **kwargs.get("config", {})}
        return bool((config.get("n") or defaults.get("n") or defaults.get("num_generations") or 1) == 1)

    def forward(self, **kwargs: Any) -> Any:
        """Run the predictor, by its plan where that equals DSPy."""
        if not self._plan_holds(kwargs):
            return super().forward(**kwargs)
        predictor = cast(Any, self)
        lm, config, signature, _, inputs = predictor._forward_preprocess(**kwargs)
        plans = self.plans
        try:
            messages = plans.main.render(inputs)
        except NeedsAdapter:
            return super().forward(**kwargs)
        try:
            fields = self._ask(lm, plans.main, messages, config, signature)
        except AdapterParseError:
            second = plans.second
            if second is None:
                raise
            note_second_request(self.path)
            fields = self._ask(lm, second, second.render(inputs), _without_tools(config), signature)
        return predictor._forward_postprocess([fields], signature, **inputs)

    async def aforward(self, **kwargs: Any) -> Any:
        """Run the predictor asynchronously, by its plan where that equals DSPy."""
        if not self._plan_holds(kwargs):
            return await super().aforward(**kwargs)
        predictor = cast(Any, self)
        lm, config, signature, _, inputs = predictor._forward_preprocess(**kwargs)
        plans = self.plans
        try:
            messages = plans.main.render(inputs)
        except NeedsAdapter:
            return await super().aforward(**kwargs)
        try:
            fields = await self._aask(lm, plans.main, messages, config, signature)
        except AdapterParseError:
            second = plans.second
            if second is None:
                raise
            note_second_request(self.path)
            fields = await self._aask(lm, second, second.render(inputs), _without_tools(config), signature)
        return predictor._forward_postprocess([fields], signature, **inputs)

    def _ask(
        self, lm: Any, plan: PromptPlan, messages: list[dict[str, Any]], config: dict[str, Any], signature: Any
    ) -> dict[str, Any]:
        if isinstance(lm, EngineLM) and lm.direct(config):
            text = lm.ask(messages, plan.request_params(config, lm.capabilities))
            return self._fields(text, None, plan.format, signature)
        with planning_scope(lm, config):
            params = _dspy_params(plan, config, lm, signature)
            with adapter_message_call(lm, messages):
                outputs = lm(messages=messages, **params)
        return self._fields(*_first(outputs), plan.format, signature)

    async def _aask(
        self, lm: Any, plan: PromptPlan, messages: list[dict[str, Any]], config: dict[str, Any], signature: Any
    ) -> dict[str, Any]:
        if isinstance(lm, EngineLM) and lm.direct(config):
            text = await lm.aask(messages, plan.request_params(config, lm.capabilities))
            return self._fields(text, None, plan.format, signature)
        with planning_scope(lm, config):
            await prepare_async(lm)
            params = _dspy_params(plan, config, lm, signature)
            with adapter_message_call(lm, messages):
                outputs = await lm.acall(messages=messages, **params)
        return self._fields(*_first(outputs), plan.format, signature)

    def _fields(self, text: str | None, output: Any, used: Format, signature: Any) -> dict[str, Any]:
        """Return the reply's values, or raise DSPy's own error, which ReAct and Refine know how to treat."""
        if not text:
            raise AdapterParseError(
                adapter_name=ADAPTER_NAMES[used],
                signature=signature,
                lm_response=str(text if output is None else output),
                message="The LM returned an empty or null response.",
            )
        try:
            fields = self.plans.parser.parse(text, used)
        except ParseError as error:
            raise AdapterParseError(
                adapter_name=ADAPTER_NAMES[used], signature=signature, lm_response=text, message=str(error)
            ) from error
        fields = dict(apply_output_field_defaults(signature, fields))
        if isinstance(output, dict) and output.get("logprobs"):
            fields["logprobs"] = output["logprobs"]
        return fields


def marks(signature: Any, demos: Any) -> tuple[Any, ...]:
    """Return what must still be identical for a plan to hold: the signature, and each demonstration with its values.

    Identity, not equality: values may compare as they like, and forward() may put other ones into a demonstration.
    """
    if not isinstance(signature, type):
        return ()
    found: list[Any] = [signature, signature.__doc__]
    for demo in demos:
        values = getattr(demo, "_store", demo)  # a dspy.Example holds its values there
        found += (demo, *values, *values.values()) if isinstance(values, dict) else (demo,)
    return tuple(found)


def format_in_force() -> Format | None:
    """Return the format of `dspy.settings.adapter`; None for an adapter that plans can't stand in for."""
    adapter = settings.adapter
    if adapter is None:
        return "chat"
    kind = type(adapter)
    if kind not in (dspy.ChatAdapter, JSONAdapter) or vars(adapter) != vars(kind()):
        return None
    return "json" if kind is JSONAdapter else "chat"


def counting_adapter(path: str, policy: ReplyPolicy) -> Any:
    """Return a ChatAdapter that follows `policy` and tells the evaluation in force of every second request."""
    adapter: Any = dspy.ChatAdapter(use_json_adapter_fallback=policy.second_format == "json")
    make: Callable[[], Any] = adapter._make_json_adapter_fallback

    def counted() -> Any:
        note_second_request(path)
        return make()

    adapter._make_json_adapter_fallback = counted
    return adapter


def note_second_request(path: str) -> None:
    """Tell the evaluation in force, if there is one, that a reply couldn't be parsed and was asked for again."""
    scope = settings.get("vitrify_scope")
    if scope is not None:
        scope.reparsed(path)


def _without_tools(config: Mapping[str, Any]) -> dict[str, Any]:
    # The further request of DSPy's ChatAdapter has lost them, as its first one has.
    return {key: value for key, value in config.items() if key not in TOOL_OPTIONS}


def _dspy_params(plan: PromptPlan, config: dict[str, Any], lm: Any, signature: Any) -> dict[str, Any]:
    """Return the keyword arguments that DSPy's adapter hands to `lm`.

    For an LM of DSPy's own the `response_format` is made by DSPy: a legacy `BaseLM` gets a pydantic class there.
    """
    params = plan.request_params(config, Capabilities())
    if plan.format == "json":
        JSONAdapter()._prepare_response_format(lm, params, signature)
    return params


def _first(outputs: list[Any]) -> tuple[str | None, Any]:
    output = outputs[0]
    return (output.get("text") if isinstance(output, dict) else output), output


def plan_predictor(
    original: dspy.Predict, spec: PredictorSpec, params: PredictorParams, policy: ReplyPolicy
) -> dspy.Predict:
    """Return a planned copy of `original` that carries `params`; the original is left untouched.

    Raises:
        NeedsAdapter: If a demonstration holds what only DSPy's adapter renders.
    """
    assert spec.signature is not None
    bound = _bound(Planned, original, spec, params, policy)
    types = annotations(original.signature)
    lowered = spec.signature.with_instruction(params.instruction)
    plain = tuple(dict(demo) for demo in bound.demos)
    bound.plans = Plans(
        spec=lowered,
        format=params.format,
        types=types,
        demos=plain,
        main=PromptPlan.build(lowered, format=params.format, demos=plain, types=types),
        parser=ReplyParser(lowered, types),
        policy=policy,
    )
    bound._marks = marks(bound.signature, bound.demos)
    return cast(dspy.Predict, bound)


def unplanned_predictor(
    original: dspy.Predict, spec: PredictorSpec, params: PredictorParams, policy: ReplyPolicy, *, alone: bool
) -> dspy.Predict:
    """Return a copy that DSPy itself runs, with the candidate's parameters; of its very class if it is left `alone`."""
    return cast(dspy.Predict, _bound(None if alone else Bound, original, spec, params, policy))


def _bound(mixin: type | None, original: Any, spec: PredictorSpec, params: PredictorParams, policy: ReplyPolicy) -> Any:
    cls = written_class(type(original))
    bound: Any = object.__new__(cls if mixin is None else bound_class(mixin, cls))
    bound.__dict__.update({k: v for k, v in vars(original).items() if cls is type(original) or k not in ATTRIBUTES})
    # Level 0 keeps the user's own demonstration objects: their values may be richer than JSON.
    changed = params.demos != spec.level0.demos
    gone = spec.level0.decoding.keys() - params.decoding.keys()
    kept = {key: value for key, value in original.config.items() if key not in gone}
    bound.__dict__.update(
        demos=[dspy.Example(**demo) for demo in params.demos] if changed else list(original.demos),
        config={**kept, **params.decoding},
        fields={name: dict(settings_) for name, settings_ in original.fields.items()},
        traces=[],
        train=list(original.train),
        history=[],
        callbacks=list(original.callbacks),
    )
    if params.instruction != spec.level0.instruction:
        bound.signature = original.signature.with_instructions(params.instruction)
    if mixin is not None:
        bound.__dict__.update(path=spec.path, params=params, format=params.format, ambient=spec.ambient, policy=policy)
    return bound


@functools.lru_cache(maxsize=512)
def bound_class(mixin: type, cls: type) -> type:
    """Return `cls` with `mixin` before it; callbacks, status messages and `inspect.getsource` see the name of `cls`."""
    # A pure function of the two, remembered because making a class costs as much as binding the rest.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls)(cls.__name__, (mixin, cls), names)


def written_class(cls: type) -> type:
    """Return the class that the user wrote: `cls` itself, or what binding made it from."""
    return cls.__mro__[cls.__mro__.index(Bound) + 1] if issubclass(cls, Bound) else cls

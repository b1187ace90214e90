"""Planned: a dspy.Predict that executes its plan where that equals what DSPy would do, and DSPy's path elsewhere.

This module imports dspy at its top and is itself imported only inside functions (bind.py, bridge.py), so that a frozen
program that needs no DSPy never loads it. See docs/decisions/0002.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, cast

import dspy
from dspy.adapters.json_adapter import JSONAdapter
from dspy.clients._deprecation import adapter_message_call
from dspy.clients.capabilities import planning_scope, prepare_async
from dspy.dsp.utils.settings import settings, thread_local_overrides
from dspy.predict.predict import _is_value_compatible_with_type as compatible
from dspy.utils.exceptions import AdapterParseError

from ..signatures.lower import annotations
from ..signatures.prompt import Capabilities, Format, NeedsAdapter, PromptPlan
from ..signatures.reply import ParseError, ReplyParser
from .bridge import EngineLM
from .candidate import PredictorParams
from .marks import Marks
from .plans import DSPY_POLICY as DSPY_POLICY
from .plans import PRIVILEGED, Call, Plans
from .plans import ReplyPolicy as ReplyPolicy
from .program import PredictorSpec

ADAPTER_NAMES: Mapping[Format, str] = {"chat": "ChatAdapter", "json": "JSONAdapter"}
TOOL_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")

ATTRIBUTES: Final[frozenset[str]] = frozenset({"path", "params", "plans", "format", "ambient", "policy", "_marks"})
"""What binding adds to a predictor; a class that uses one of these names for itself is left alone."""

PREDICT_ATTRIBUTES: Final[frozenset[str]] = frozenset(
    {"stage", "signature", "fields", "config", "lm", "traces", "train", "demos", "history", "callbacks", "_compiled"}
)
"""What every `dspy.Predict` holds; whatever else a subclass holds may contain modules."""


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
    _marks: Marks

    def _plain(self, inputs: Mapping[str, Any]) -> "Call | None":
        """Return the call where it is by plan and needs nothing else of DSPy; None for one to be looked at closely.

        Attributes are read from the instance's dictionary and settings from DSPy's own, because each of them is behind
        a Python function otherwise, and there are twenty in a call.
        """
        own = vars(self)
        plans: Plans = own["plans"]
        if plans.inputs is None or inputs.keys() != plans.inputs.keys():
            return None
        now = thread_local_overrides.get()
        if now.get("send_stream", now) is not None or now["callbacks"] or own["fields"]:
            return None  # streamed, listened to, decided; or no context was entered, and the settings are elsewhere
        lm, config, signature = own["lm"] or now["lm"], own["config"], own["signature"]
        if not isinstance(lm, EngineLM) or not lm.plain(config, now):
            return None
        adapter = now["adapter"]
        if own["ambient"] != ("chat" if adapter is None else format_of(adapter)):
            return None
        if not own["_marks"].hold(signature, own["demos"]):
            return None
        for name, annotation in plans.inputs.items():
            value = inputs[name]
            if not (type(value) is annotation is str or value is None or compatible(value, annotation)):
                return None  # DSPy warns
        return Call(lm, config, signature, inputs, True, now)

    def _plan_holds(self, kwargs: Mapping[str, Any]) -> bool:
        """Say whether executing the plan now equals what DSPy would do."""
        predictor = cast(Any, self)
        signature = kwargs.get("signature", predictor.signature)
        if not self._marks.hold(signature, kwargs.get("demos", predictor.demos)):
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

    def _closely(self, kwargs: dict[str, Any]) -> "Call | None":
        """Return the call as DSPy prepares it; None where executing the plan now wouldn't equal what DSPy does."""
        predictor = cast(Any, self)
        if not self._plan_holds(kwargs):
            return None
        lm, config, signature, _, inputs = predictor._forward_preprocess(**kwargs)
        return Call(lm, config, signature, inputs, isinstance(lm, EngineLM) and lm.direct(config), None)

    def forward(self, **kwargs: Any) -> Any:
        """Run the predictor, by its plan where that equals DSPy."""
        call = self._plain(kwargs) or self._closely(kwargs)
        messages = None if call is None else self._messages(call)
        if call is None or messages is None:
            return super().forward(**kwargs)
        plan = self.plans.main
        try:
            fields = self._ask(call, plan, messages, call.config)
        except AdapterParseError:
            second = self.plans.second
            if second is None:
                raise
            note_second_request(self.path)
            fields = self._ask(call, second, second.render(call.inputs), _without_tools(call.config))
        return self._prediction(call, fields)

    async def aforward(self, **kwargs: Any) -> Any:
        """Run the predictor asynchronously, by its plan where that equals DSPy."""
        call = self._plain(kwargs) or self._closely(kwargs)
        messages = None if call is None else self._messages(call)
        if call is None or messages is None:
            return await super().aforward(**kwargs)
        plan = self.plans.main
        try:
            fields = await self._aask(call, plan, messages, call.config)
        except AdapterParseError:
            second = self.plans.second
            if second is None:
                raise
            note_second_request(self.path)
            fields = await self._aask(call, second, second.render(call.inputs), _without_tools(call.config))
        return self._prediction(call, fields)

    def _messages(self, call: "Call") -> Sequence[dict[str, Any]] | None:
        plan = self.plans.main
        try:
            # DSPy's own call path gets a list of its own, whose messages it may change.
            return plan.request_messages(call.inputs) if call.direct else plan.render(call.inputs)
        except NeedsAdapter:
            return None

    def _ask(
        self, call: "Call", plan: PromptPlan, messages: Sequence[dict[str, Any]], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        lm, signature = call.lm, call.signature
        if call.direct:
            text = lm.ask(messages, plan.request_params(config, lm.capabilities))
            return self._fields(text, None, plan.format, signature)
        with planning_scope(lm, config):
            params = _dspy_params(plan, config, lm, signature)
            with adapter_message_call(lm, messages):
                outputs = lm(messages=messages, **params)
        return self._fields(*_first(outputs), plan.format, signature)

    async def _aask(
        self, call: "Call", plan: PromptPlan, messages: Sequence[dict[str, Any]], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        lm, signature = call.lm, call.signature
        if call.direct:
            text = await lm.aask(messages, plan.request_params(config, lm.capabilities))
            return self._fields(text, None, plan.format, signature)
        with planning_scope(lm, config):
            await prepare_async(lm)
            params = _dspy_params(plan, config, lm, signature)
            with adapter_message_call(lm, messages):
                outputs = await lm.acall(messages=messages, **params)
        return self._fields(*_first(outputs), plan.format, signature)

    def _prediction(self, call: "Call", fields: dict[str, Any]) -> Any:
        """Return the prediction, and note the call in DSPy's trace, as DSPy does."""
        now = call.now
        if now is None:
            return cast(Any, self)._forward_postprocess([fields], call.signature, **call.inputs)
        prediction = dspy.Prediction.from_completions([fields], signature=call.signature)
        trace, most = now["trace"], now["max_trace_size"]
        if trace is not None and most > 0:
            if len(trace) >= most:
                trace.pop(0)
            trace.append((self, {**call.inputs}, prediction))
        return prediction

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
        if isinstance(output, dict) and output.get("logprobs"):
            fields["logprobs"] = output["logprobs"]
        return fields


def format_in_force() -> Format | None:
    """Return the format of `dspy.settings.adapter`; None for an adapter that plans can't stand in for."""
    adapter = settings.adapter
    return "chat" if adapter is None else format_of(adapter)


def format_of(adapter: Any) -> Format | None:
    """Return the format of an adapter of DSPy's with default options; None for any other."""
    kind = type(adapter)
    if kind not in (dspy.ChatAdapter, JSONAdapter) or vars(adapter) != _defaults(cast(Any, kind)):
        return None
    return "json" if kind is JSONAdapter else "chat"


@functools.lru_cache(maxsize=8)
def _defaults(kind: Any) -> dict[str, Any]:
    return dict(vars(kind()))


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


def _dspy_params(plan: PromptPlan, config: Mapping[str, Any], lm: Any, signature: Any) -> dict[str, Any]:
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
        inputs=_plain_inputs(bound),
    )
    bound._marks = Marks(bound.signature, bound.demos)
    return cast(dspy.Predict, bound)


def _plain_inputs(bound: Any) -> Mapping[str, Any] | None:
    """Return the types of the inputs; None where the predictor isn't DSPy's own in what `_plain` leaves out."""
    if bound.ambient is None or any(getattr(type(bound), name, None) is not own for name, own in _own().items()):
        return None
    inputs = {name: field.annotation for name, field in bound.signature.input_fields.items()}
    return None if PRIVILEGED & inputs.keys() else inputs


def _own() -> dict[str, Any]:
    # What a class may define for itself: preparations, how attributes are found, and attributes as properties.
    methods = ("_forward_preprocess", "_forward_postprocess", "__getattribute__", "__getattr__")
    return {name: getattr(dspy.Predict, name, None) for name in (*methods, *PREDICT_ATTRIBUTES)}


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

"""FrozenPredictor: one predictor out of an artifact, as requests to send and replies to read."""

from collections.abc import Generator, Mapping
from typing import Any

from ..signatures.canonical import canonical_json
from ..signatures.errors import ArtifactError, RequestError, WorkError, nearest
from ..signatures.grammar import Unsupported
from ..signatures.prompt import Capabilities, Messages, NeedsAdapter, PromptPlan
from ..signatures.rebuild import python_types
from ..signatures.reply import ParseError, ReplyParser
from ..signatures.signature import FieldSpec, SignatureSpec
from .artifact import PredictorRecord
from .lm import Reply, Request

Asking = Generator[Request, Reply, dict[str, Any]]
"""Yields requests, is sent their replies, and returns the outputs."""


class Unreadable(WorkError):
    """The model answered, and no value could be read from its reply, the second request included."""


class FrozenPredictor:
    """One predictor out of an artifact: its plans, its parser, its sampling parameters.

    Attributes:
        path: Where the predictor is in the program.
        signature: Its signature.
        plans: The prompt, and that of the further request after a reply that can't be read.
    """

    def __init__(
        self,
        record: PredictorRecord,
        *,
        decoding: Mapping[str, Any],
        capabilities: Capabilities,
        types: Mapping[str, Any],
    ) -> None:
        assert record.signature is not None and record.plan is not None
        self.path = record.path
        self.signature = SignatureSpec.from_json(record.signature)
        written = (record.plan, record.second_plan)
        self.plans = tuple(PromptPlan.from_json(plan) for plan in written if plan is not None)
        outputs = self.signature.outputs
        built = dict(zip((f.name for f in outputs), python_types(f.type for f in outputs), strict=True))
        self._parser = ReplyParser(self.signature, {**built, **self._own(types)})
        params = {**decoding, **record.decoding}
        self._replicate = params.pop("rollout_id", None)
        params.pop("n", None)  # it is 1, or the program wouldn't be sealed
        self._params = tuple(
            {name: value for name, value in plan.request_params(params, capabilities).items() if value is not None}
            for plan in self.plans
        )

    def ask(self, inputs: Mapping[str, Any], model: str) -> Asking:
        """Yield the request for these inputs and, where its reply can't be read, one further; return the outputs."""
        problem: ParseError | None = None
        for plan, params in zip(self.plans, self._params, strict=True):
            reply = yield Request(model, self._messages(plan, inputs), params, self._replicate)
            try:
                if not reply.text:
                    raise ParseError(None, "a text", "", "there is none")
                return self._parser.parse(reply.text, plan.format)
            except ParseError as error:
                problem = error
        raise Unreadable(f"{self.path}: the model's reply has no readable values ({str(problem)[:300]}).") from problem

    def _messages(self, plan: PromptPlan, inputs: Mapping[str, Any]) -> Messages:
        try:
            return plan.request_messages(inputs)
        except NeedsAdapter as error:
            raise RequestError(
                f"{self.path}: an input can't be written ({error}) A sealed program has no DSPy: load it with program=."
            ) from error
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RequestError(
                f"{self.path}: an input can't be written ({type(error).__name__}: {str(error)[:200]})."
            ) from error

    def _own(self, types: Mapping[str, Any]) -> dict[str, Any]:
        """Return the user's own classes by output field, each checked to be the one of the compile."""
        own = {}
        for field in self.signature.outputs:
            key = next((key for key in (f"{self.path}.{field.name}", field.name) if key in types), None)
            if key is not None:
                _check_type(key, types[key], field)
                own[field.name] = types[key]
        return own


def _check_type(key: str, own: Any, field: FieldSpec) -> None:
    from ..signatures.types import lower_type

    found = lower_type(own)
    if isinstance(found, Unsupported):
        raise ArtifactError(f"types[{key!r}] isn't the type of the compile: {found.reason}")
    if found != field.type:
        before, after = (canonical_json(kind.to_json()) for kind in (field.type, found))
        raise ArtifactError(
            f"types[{key!r}] isn't the type of the compile: `the class is as it was`; the artifact has {before:.300}, "
            f"the class is {after:.300}: use the class as it was, or compile again."
        )


def check_types(types: Mapping[str, Any], predictors: Mapping[str, FrozenPredictor]) -> None:
    """Raise RequestError unless every key of `types` names an output field."""
    known = [f"{path}.{field.name}" for path, item in predictors.items() for field in item.signature.outputs]
    known += [name.rpartition(".")[2] for name in known]
    for key in types:
        if key not in known:
            raise RequestError(f"types: {key!r} is no output field of the program; {nearest(str(key), known)}")

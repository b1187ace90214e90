"""What a planned predictor executes: its plans, the policy for replies that can't be read, and one call."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..signatures.prompt import Format, PromptPlan
from ..signatures.reply import ReplyParser
from ..signatures.signature import SignatureSpec

PRIVILEGED: Final[frozenset[str]] = frozenset(
    {"signature", "demos", "config", "lm", "prediction", "new_signature", "_trace"}
)
"""Keyword arguments of a call that DSPy takes for itself before it looks at the inputs."""


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
    """The plans of one predictor; shared by every copy of it, since nothing in it changes.

    Attributes:
        spec: The signature.
        format: The reply format of the first request.
        types: The annotations of its fields, the user's own classes included.
        demos: The demonstrations.
        main: The first request.
        parser: Reads the replies.
        policy: What happens when a reply can't be parsed.
        inputs: The types of the inputs, where a call that gives exactly those needs none of DSPy's preparations; None
            where the predictor's class or its inputs' names ask for them.
    """

    spec: SignatureSpec
    format: Format
    types: Mapping[str, Any]
    demos: tuple[Mapping[str, Any], ...]
    main: PromptPlan
    parser: ReplyParser
    policy: ReplyPolicy
    inputs: Mapping[str, Any] | None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plans":
        return self

    @functools.cached_property
    def second(self) -> PromptPlan | None:
        """The plan of the further request, or None where the policy has none."""
        wanted = self.policy.second_format
        if wanted is None or wanted == self.format:
            return None
        return PromptPlan.build(self.spec, format=wanted, demos=self.demos, types=self.types)


class Call(NamedTuple):
    """One call by plan.

    Attributes:
        lm: The language model.
        config: The sampling parameters.
        signature: The predictor's.
        inputs: What fills the holes.
        direct: Whether DSPy's call path is skipped.
        now: DSPy's settings, where nothing else of DSPy's preparations is needed.
    """

    lm: Any
    config: dict[str, Any]
    signature: Any
    inputs: Mapping[str, Any]
    direct: bool
    now: Mapping[str, Any] | None

"""Prediction: what a frozen program returns; it behaves where it is used as DSPy's own does."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .lm import Usage


class Prediction:
    """The outputs of one call: `pred.x`, `pred["x"]`, `.get`, `.toDict()`, and the tokens it took.

    DSPy's metrics and `dspy.Evaluate` use it as they use a `dspy.Prediction`; what doesn't start with an underscore
    and isn't a method is a field.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        usage: Usage | None = None,
        calls: int = 0,
        model: str = "",
        seconds: float = 0.0,
    ) -> None:
        self._values = dict(values)
        self._usage = usage or Usage()
        self._calls = calls
        self._model = model
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        values = {} if name == "_values" else self._values  # while it is copied or unpickled there are none yet
        if name in values:
            return values[name]
        known = ", ".join(values) or "nothing"
        raise AttributeError(f"the prediction has no field {name!r}; it has {known}", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self._values[name] = value

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Prediction):
            return self._values == other._values
        return NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        body = ",\n    ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"Prediction(\n    {body}\n)"

    def keys(self) -> list[str]:
        """Return the names of the outputs."""
        return list(self._values)

    def values(self) -> list[Any]:
        """Return the outputs."""
        return list(self._values.values())

    def items(self) -> list[tuple[str, Any]]:
        """Return names and outputs."""
        return list(self._values.items())

    def get(self, name: str, default: Any = None) -> Any:
        """Return one output, or `default`."""
        return self._values.get(name, default)

    def toDict(self) -> dict[str, Any]:  # noqa: N802 - DSPy's name
        """Return the outputs as a dictionary, models in it as dictionaries too."""
        return {name: _plain(value) for name, value in self._values.items()}

    def get_lm_usage(self) -> dict[str, dict[str, int]]:
        """Return the tokens of this call by model, as DSPy reports them."""
        total = self._usage.prompt_tokens + self._usage.completion_tokens
        return {
            self._model: {
                "prompt_tokens": self._usage.prompt_tokens,
                "completion_tokens": self._usage.completion_tokens,
                "total_tokens": total,
            }
        }

    @property
    def calls(self) -> Any:
        """How many requests this call made, a second one after an unreadable reply included; or the field `calls`."""
        return self._values.get("calls", self._calls)

    @property
    def seconds(self) -> Any:
        """How long this call took; or the field `seconds`."""
        return self._values.get("seconds", self._seconds)


def requests_of(prediction: Prediction) -> int:
    """Return how many requests a call made; no attribute, since a field may have any name."""
    return prediction._calls


def is_model(value: Any) -> bool:
    """Say whether a value is a pydantic model; pydantic isn't imported to ask, since without it there is none."""
    base = getattr(sys.modules.get("pydantic.main"), "BaseModel", None)
    return base is not None and isinstance(value, base)


def _plain(value: Any) -> Any:
    if is_model(value):
        return value.model_dump()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value

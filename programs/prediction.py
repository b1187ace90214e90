"""Prediction: what a frozen program returns; it behaves where it is used as DSPy's own does."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from .lm import Usage


class Prediction:
    """The outputs of one call: `pred.x`, `pred["x"]`, `.get`, `.toDict()`, and the tokens it took.

    DSPy's metrics and `dspy.Evaluate` use it as they use a `dspy.Prediction`.
    """

    def __init__(
        self, values: Mapping[str, Any], *, usage: Usage | None = None, calls: int = 0, model: str = ""
    ) -> None:
        self._values = dict(values)
        self._usage = usage or Usage()
        self._calls = calls
        self._model = model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(self._values) or "nothing"
            raise AttributeError(f"the prediction has no field {name!r}; it has {known}") from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Prediction):
            return self._values == other._values
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # like DSPy's: equal by content, and content may be unhashable

    def __repr__(self) -> str:
        body = ",\n    ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"Prediction(\n    {body}\n)"

    def keys(self) -> KeysView[str]:
        """Return the names of the outputs."""
        return self._values.keys()

    def values(self) -> ValuesView[Any]:
        """Return the outputs."""
        return self._values.values()

    def items(self) -> ItemsView[str, Any]:
        """Return names and outputs."""
        return self._values.items()

    def get(self, name: str, default: Any = None) -> Any:
        """Return one output, or `default`."""
        return self._values.get(name, default)

    def toDict(self) -> dict[str, Any]:  # noqa: N802 - DSPy's name
        """Return the outputs as a dictionary."""
        return dict(self._values)

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
    def calls(self) -> int:
        """How many requests this call made, a second one after an unreadable reply included."""
        return self._calls

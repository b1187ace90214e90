"""Prices: dollars per token, from the table that comes with the installed packages, read without importing them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .budget import Price


def price_of(model: str, given: tuple[float, float] | None = None) -> Price | None:
    """Return a model's price, or None where nobody knows it.

    Args:
        model: The name, with its provider.
        given: Dollars per million prompt and completion tokens, which win over the table.
    """
    if given is not None:
        return Price(given[0] / 1e6, given[1] / 1e6)
    if model == "embedded":
        return Price(0.0, 0.0)
    table = _table()
    entry = table.get(model) or table.get(model.partition("/")[2])
    if not isinstance(entry, dict):
        return None
    prompt, completion = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if not isinstance(prompt, int | float) or not isinstance(completion, int | float):
        return None
    return Price(float(prompt), float(completion))


class Prices:
    """The models' prices; the table is read at the first question.

    Args:
        given: Dollars per million prompt and completion tokens of the models that the table doesn't know.
    """

    def __init__(self, given: tuple[float, float] | None = None) -> None:
        self._given = given
        self._known: dict[str, Price | None] = {}

    def of(self, model: str) -> Price | None:
        """Return a model's price, or None where nobody knows it."""
        if model not in self._known:
            self._known[model] = price_of(model, self._given)
        return self._known[model]


def _table() -> dict[str, Any]:
    spec = find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        return {}
    file = Path(next(iter(spec.submodule_search_locations))) / "model_prices_and_context_window_backup.json"
    try:
        table = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}

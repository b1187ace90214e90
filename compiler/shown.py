"""shown_rows(): the training rows as they may be shown; what is kept out here is in no demonstration and no prompt.

Traces, labelled demonstrations, canaries and the examples that instructions are written from all come from these rows.
The rows that are kept out still count where nothing of them ships: in the select set and in the sealed test.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..signatures.errors import DataError, RequestError, nearest
from .data import Dataset, Example
from .importing import load_object

Redact = Callable[[dict[str, Any]], Mapping[str, Any] | None]
"""From a row, labels included, to the row as it may be shown, or to None where nothing of it may."""


def parse_conditions(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return `column=value` texts as pairs, or raise RequestError."""
    pairs = []
    for item in [given] if isinstance(given, str) else given:
        column, equals, value = str(item).partition("=")
        if not equals or not column.strip():
            raise RequestError(f"`no_demos_from` is column=value (--no-demos-from customer=acme), got {item!r:.60}.")
        pairs.append((column.strip(), value.strip()))
    return tuple(pairs)


def resolve_redact(redact: Any) -> Redact | None:
    """Return the function that a callable or a name such as `file.py:function` stands for."""
    found = load_object(redact, kind="redaction") if isinstance(redact, str) else redact
    if found is not None and (isinstance(found, type) or not callable(found)):
        raise RequestError(
            f"`redact` is a function from a row to the row as it may be shown, or None: got {found!r:.80}."
        )
    chosen: Redact | None = found  # what it returns is checked row by row
    return chosen


def check_columns(conditions: Sequence[tuple[str, str]], dataset: Dataset) -> None:
    """Raise DataError where a condition names no column: a misspelt one would keep nothing out."""
    known = [*dataset.input_names, *dataset.label_names]
    for column, _ in conditions:
        if column not in known:
            raise DataError(
                f"The data breaks `--no-demos-from names a column`: there is none `{column}`; {nearest(column, known)}"
            )


def shown_rows(
    train: Sequence[Example], conditions: Sequence[tuple[str, str]], redact: Redact | None
) -> tuple[tuple[Example, ...], list[str]]:
    """Return the training rows that may be shown, redacted, and sentences on what was kept out.

    The sentences are for the artifact: they name columns, never values, which may be private themselves.

    Raises:
        RequestError: If `redact` raises, or returns what is no row.
    """
    kept = [row for row in train if not any(_has(row, column, value) for column, value in conditions)]
    notes = []
    if conditions:
        columns = ", ".join(dict.fromkeys(column for column, _ in conditions))
        notes.append(f"{len(train) - len(kept)} of {len(train)} training rows are shown nowhere, by their {columns}.")
    if redact is None:
        return tuple(kept), notes
    redacted = [_redacted(row, redact) for row in kept]
    left = tuple(row for row in redacted if row is not None)
    changed = sum(row is not None and row.id != old.id for row, old in zip(redacted, kept, strict=True))
    gone = len(kept) - len(left)
    notes.append(f"Training rows are shown as redact leaves them: {changed} of {len(kept)} changed, {gone} left out.")
    return left, notes


def _has(row: Example, column: str, value: str) -> bool:
    found = {**row.labels, **row.inputs}.get(column)
    items = found if isinstance(found, list | tuple) else [found]
    return any(value in (str(item), _text(item)) for item in items if item is not None)


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def _redacted(row: Example, redact: Redact) -> Example | None:
    whole = {**row.labels, **row.inputs}
    try:
        found = redact(copy.deepcopy(whole))
    except Exception as error:
        raise RequestError(
            f"redact raised {type(error).__name__} on row {row.row}: {str(error)[:200]}; mend it: nothing was shown."
        ) from error
    if found is None:
        return None
    if not isinstance(found, Mapping) or set(found) != set(whole):
        got = f"{', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
        raise RequestError(
            f"redact breaks `a row with the same columns, or None` on row {row.row}: got {got:.120}, not "
            f"{', '.join(whole)}."
        )
    return Example({name: found[name] for name in row.inputs}, {name: found[name] for name in row.labels}, row.row)

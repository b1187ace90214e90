"""Data: examples with an identity by content, typed and de-duplicated; what a compile learns from and is judged on."""

import copy
import datetime
import decimal
import enum
import functools
import pathlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pydantic
from pydantic.errors import PydanticUserError

from ..signatures.canonical import NotCanonical, digest
from ..signatures.errors import DataError, nearest
from ..signatures.values import jsonable
from .rows import Row, describe_source, load_rows

__all__ = ["Dataset", "Example", "describe_source", "load_rows", "to_dataset"]

_SCALARS = (
    str, int, float, bool, enum.Enum, bytes, decimal.Decimal, uuid.UUID, pathlib.PurePath,
    datetime.date, datetime.time, datetime.timedelta,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Example:
    """One row: what the program gets, and what the metric compares with. Equal by content, wherever it stood.

    Attributes:
        inputs: values by the program's input name; read-only.
        labels: every other value by column; read-only.
        row: 1-based position in the source; for messages, no part of the identity.
        id: sha256 of the canonical JSON of inputs and labels.
    """

    inputs: Mapping[str, Any]
    labels: Mapping[str, Any]
    row: int = 0
    id: str = field(init=False)

    def __post_init__(self) -> None:
        inputs, labels = dict(self.inputs), dict(self.labels)
        object.__setattr__(self, "inputs", MappingProxyType(inputs))
        object.__setattr__(self, "labels", MappingProxyType(labels))
        content = {"inputs": _json_of(inputs, self.row), "labels": _json_of(labels, self.row)}
        object.__setattr__(self, "id", digest(content))

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Example) else NotImplemented

    def __hash__(self) -> int:
        return int(self.id[:15], 16)

    def __reduce__(self) -> tuple[type["Example"], tuple[dict[str, Any], dict[str, Any], int]]:
        # A mapping proxy can be neither pickled nor deep-copied.
        return Example, (dict(self.inputs), dict(self.labels), self.row)

    def own_inputs(self) -> dict[str, Any]:
        """Return the inputs as values of the caller's own: a program that changes a list doesn't change the example."""
        return _own(self.inputs)

    def to_dspy(self) -> Any:
        """Return a fresh `dspy.Example` with its inputs declared; what it does to its values stays there."""
        import dspy

        values = {**_own(self.labels), **_own(self.inputs)}
        return dspy.Example(values).with_inputs(*self.inputs)


@dataclass(frozen=True)
class Dataset:
    """Examples without exact duplicates, in the order of their source.

    Attributes:
        examples: the examples.
        input_names: the columns that are inputs of the program.
        label_names: every other column kept.
        source: what it was read from, in a few words.
        duplicates: rows dropped because an earlier one has the same inputs and labels.
        conflicts: rows kept although an earlier one has the same inputs and other labels.
    """

    examples: tuple[Example, ...]
    input_names: tuple[str, ...]
    label_names: tuple[str, ...]
    source: str = ""
    duplicates: int = 0
    conflicts: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of the set of examples, whatever their order."""
        return digest(sorted(example.id for example in self.examples))


def to_dataset(
    rows: Sequence[Mapping[str, Any]],
    *,
    input_names: Sequence[str],
    optional_inputs: Sequence[str] = (),
    label_names: Sequence[str] | None = None,
    types: Mapping[str, Any] | None = None,
    source: str = "",
) -> Dataset:
    """Return rows as examples: columns checked, strings typed, exact duplicates dropped.

    Args:
        rows: What `load_rows` returns. Rows that came from `dspy.Example`s with `with_inputs` keep those inputs.
        input_names: The program's inputs; every row has them, but for those in `optional_inputs`.
        optional_inputs: Inputs that a row may lack.
        label_names: Columns that every row must have, the only labels then; None takes every other column.
        types: Annotations by column; a string (all that CSV has) becomes an int, float, bool, list ... by pydantic.
            An input that doesn't fit is an error, a label stays the string it is.
        source: What the rows were read from, in a few words.

    Raises:
        DataError: Naming the column, or the row and the column.
    """
    if not rows:
        raise DataError("The data breaks `at least one row`: there is none.")
    _check_columns(rows, input_names, optional_inputs, label_names)
    kinds = dict(types or {})
    adapters = {name: adapter for name, kind in kinds.items() if (adapter := _adapter(kind)) is not None}
    known_inputs = tuple(dict.fromkeys([*input_names, *optional_inputs]))
    examples: dict[str, Example] = {}
    labels_of: dict[str, str] = {}
    conflicts = 0
    for number, row in enumerate(rows, start=1):
        example = _example(row, number, known_inputs, set(optional_inputs), label_names, adapters)
        if example.id in examples:
            continue
        examples[example.id] = example
        inputs = digest(_json_of(example.inputs, number))
        conflicts += inputs in labels_of
        labels_of.setdefault(inputs, example.id)
    kept = tuple(examples.values())
    found_inputs = dict.fromkeys(name for example in kept for name in example.inputs)
    found_labels = dict.fromkeys(name for example in kept for name in example.labels)
    return Dataset(
        examples=kept,
        input_names=tuple(found_inputs),
        label_names=tuple(found_labels),
        source=source,
        duplicates=len(rows) - len(kept),
        conflicts=conflicts,
    )


def _check_columns(
    rows: Sequence[Mapping[str, Any]],
    input_names: Sequence[str],
    optional_inputs: Sequence[str],
    label_names: Sequence[str] | None,
) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in input_names:
        if name not in columns and name not in optional_inputs:
            raise DataError(
                f"The data breaks `every input of the program is a column`: no column `{name}`; "
                f"{nearest(name, columns)} Rename the column, or the input."
            )
    for name in label_names or ():
        if name not in columns:
            raise DataError(
                f"The data breaks `every label the metric reads is a column`: no column `{name}`; "
                f"{nearest(name, columns)} Rename the column, or name another in the metric."
            )


def _example(
    row: Mapping[str, Any],
    number: int,
    known_inputs: Sequence[str],
    optional: set[str],
    label_names: Sequence[str] | None,
    adapters: Mapping[str, pydantic.TypeAdapter[Any]],
) -> Example:
    inputs_here = _inputs_of(row, number, known_inputs, optional)
    required = [*(name for name in known_inputs if name not in optional), *(label_names or ())]
    for name in required:
        if name not in row:
            raise DataError(
                f"Row {number} breaks `every row has the column {name}`: it has "
                f"{', '.join(f'`{key}`' for key in row) or 'nothing'}; add it, or remove the row."
            )
    values = {
        name: _coerce(value, adapters.get(name), number, name, strict=name in inputs_here)
        for name, value in row.items()
    }
    inputs = {name: values[name] for name in inputs_here if name in values}
    if inputs_here and all(value is None for value in inputs.values()):
        raise DataError(f"Row {number} breaks `a row has an input`: every one is null; fill it, or remove the row.")
    wanted = values if label_names is None else label_names
    labels = {name: values[name] for name in wanted if name not in inputs}
    return Example(inputs, labels, number)


def _inputs_of(row: Mapping[str, Any], number: int, known: Sequence[str], optional: set[str]) -> Sequence[str]:
    """Return the input names of a row: those that its `dspy.Example` declares, else the program's."""
    declared = row.declared if isinstance(row, Row) else None
    if declared is None:
        return known
    missing = [name for name in known if name not in declared and name not in optional]
    if missing:
        raise DataError(
            f"Row {number} breaks `with_inputs names every input of the program`: `{missing[0]}` isn't among "
            f"{', '.join(f'`{name}`' for name in sorted(declared)) or 'none'}; add it to `.with_inputs(...)`."
        )
    return [name for name in known if name in declared] + [name for name in row if name in declared - set(known)]


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any] | None:
    """Return the validator of an annotation, or None where a string is what it asks for or pydantic knows nothing."""
    if annotation in (str, Any, object):
        return None
    try:
        return pydantic.TypeAdapter(annotation)
    except (PydanticUserError, TypeError, NameError):
        return None


def _coerce(value: Any, adapter: pydantic.TypeAdapter[Any] | None, number: int, name: str, *, strict: bool) -> Any:
    if adapter is None or not isinstance(value, str):
        return value
    try:
        found = adapter.validate_python(value)
    except pydantic.ValidationError as error:
        try:
            # A cell of a table holds lists, objects and null as JSON; an empty one is no value.
            found = adapter.validate_json(value if value.strip() else "null")
        except pydantic.ValidationError:
            if not strict:  # a label may be written otherwise than the output ("12,000"): the metric decides
                return value
            reason = error.errors()[0]["msg"]
            raise DataError(
                f"Row {number}, column `{name}`, breaks `the value fits the input's type`: found {value!r:.80}; "
                f"{reason}."
            ) from None
    # JSON data, as a JSON Lines file would have held: an enum's member, say, stays the string it was.
    return adapter.dump_python(found, mode="json")


def _json_of(values: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return values by column as canonical JSON data, or a DataError that names the row and the column."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if type(value) is not str:
            opaque = _opaque(value)
            if opaque is not None:
                raise DataError(
                    f"Row {row}, column `{name}`, breaks `a value is written the same way every time`: found "
                    f"{opaque}; give text, numbers, lists or objects of them."
                )
        found[name] = jsonable(value)
    try:
        digest(found)
    except NotCanonical:
        _name_column(found, row)
        raise
    return found


def _name_column(found: Mapping[str, Any], row: int) -> None:
    for name, value in found.items():
        try:
            digest({name: value})
        except NotCanonical as error:
            raise DataError(f"Row {row}, column `{name}`: {str(error).removeprefix('$.')}.") from None


def _opaque(value: Any) -> str | None:
    """Return what in a value has no reproducible text (a set, an object that prints its address), or None."""
    if value is None or isinstance(value, _SCALARS):
        return None
    inside: Sequence[Any]
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, (list, tuple)):
        inside = value
    elif isinstance(value, pydantic.BaseModel):
        inside = list(value.__dict__.values())
    elif hasattr(type(value), "__dataclass_fields__"):
        inside = [getattr(value, name) for name in type(value).__dataclass_fields__]
    else:
        kind = type(value).__name__
        return f"a {kind}, which has no order" if isinstance(value, (set, frozenset)) else f"an opaque {kind}"
    return next((found for item in inside if (found := _opaque(item)) is not None), None)


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, _SCALARS) else copy.deepcopy(value) for name, value in values.items()}

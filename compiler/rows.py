"""Rows: plain dictionaries read from a file, a folder, a Hugging Face dataset or a list, before anything is typed."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..signatures.errors import DataError, nearest

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")

Hub = Callable[..., Any]
"""Loads a dataset by name, as `datasets.load_dataset(path, name=None, split=None)` does."""

_HUB_NAME = re.compile(r"(?P<path>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.\[\]%:+-]+))?")
_ACCEPTED = "a path, the name of a Hugging Face dataset, a `datasets.Dataset`, or a list of dicts or of `dspy.Example`"


class Row(dict[str, Any]):
    """One row by column; `declared` holds the input names of a `dspy.Example` that set them by `with_inputs`."""

    declared: frozenset[str] | None = None


def load_rows(source: Any, *, hub: Hub | None = None) -> list[dict[str, Any]]:
    """Return the rows of a data source as plain Python values.

    Args:
        source: A path (CSV, TSV, JSON Lines, a JSON array, Parquet), a folder or the name of a Hugging Face dataset
            ("org/name", "org/name:split", "org/name/config:split"), a `datasets.Dataset`, a list of dicts, or a list
            of `dspy.Example`. Values of CSV and TSV are strings.
        hub: Loads a dataset by name in place of `datasets.load_dataset`.

    Raises:
        DataError: For what isn't there, can't be read, or holds no row; it names the file and the line.
    """
    if isinstance(source, (str, os.PathLike)):
        rows = _load_named(os.fspath(source), hub)
    elif hasattr(source, "column_names") and hasattr(source, "features"):
        rows = _from_datasets(source, "the dataset")
    elif isinstance(source, Iterable) and not isinstance(source, (Mapping, bytes)):
        rows = [_row(item, number) for number, item in enumerate(source, start=1)]
    else:
        raise DataError(f"The data breaks `data is {_ACCEPTED}`: found {type(source).__name__}.")
    if not rows:
        raise DataError(f"{describe_source(source)} breaks `at least one row`: it has none; give it rows.")
    return rows


def describe_source(source: Any) -> str:
    """Return what the data is in a few words, without a path that differs between machines."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return Path(text).name if Path(text).exists() or not _looks_like_hub(text) else text
    name = type(source).__name__
    return f"{name} of {len(source)} rows" if hasattr(source, "__len__") else name


def plain(value: Any) -> Any:
    """Return numpy and pyarrow values as plain Python, inside containers too; everything else as it is."""
    if value is None or (isinstance(value, (str, bool, int, float)) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if type(value).__module__.partition(".")[0] == "pyarrow" and hasattr(value, "as_py"):
        return value.as_py()
    return value


def _row(item: Any, number: int) -> Row:
    declared: frozenset[str] | None = None
    if not isinstance(item, Mapping):
        # A dspy.Example by its methods: recognising it must not import dspy.
        if not (hasattr(item, "toDict") and hasattr(item, "items") and hasattr(item, "with_inputs")):
            raise DataError(
                f"Row {number} breaks `a row is a dict or a dspy.Example`: found {type(item).__name__} {item!r:.60}."
            )
        keys = item._input_keys
        declared = None if keys is None else frozenset(keys)
    row = Row()
    for key, value in item.items():
        if not isinstance(key, str):
            raise DataError(f"Row {number} breaks `column names are strings`: found {key!r}; rename the column.")
        row[key] = plain(value)
    row.declared = declared
    return row


def _load_named(text: str, hub: Hub | None) -> list[dict[str, Any]]:
    path = Path(text).expanduser()
    if path.is_file():
        return _load_file(path)
    folder, _, split = text.rpartition(":")
    if path.is_dir():
        return _load_folder(path, None)
    if folder and Path(folder).expanduser().is_dir():
        return _load_folder(Path(folder).expanduser(), split)
    if _looks_like_hub(text):
        return _load_hub(text, hub)
    known = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else None
    if known is None:
        raise DataError(f"`{text}` breaks `the data file exists`: its folder `{path.parent}` isn't there either.")
    files = sorted(name for name in known if Path(name).suffix.lower() in SUFFIXES)
    raise DataError(f"`{text}` breaks `the data file exists`: no such file; {nearest(path.name, files)}")


def _looks_like_hub(text: str) -> bool:
    """Say whether the text names a dataset rather than a file: no data suffix, and no local folder to be in."""
    match = _HUB_NAME.fullmatch(text)
    if match is None or text.startswith((".", "/")):
        return False
    if "/" not in text:
        return match["split"] is not None
    return Path(text).suffix.lower() not in SUFFIXES and not Path(text.partition("/")[0]).is_dir()


def _load_file(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"`{path.name}` breaks `the suffix is one of {', '.join(SUFFIXES)}`: found `{suffix}`; convert it."
        )
    if path.stat().st_size == 0:
        raise DataError(f"`{path.name}` breaks `the data file has rows`: it is empty.")
    if suffix == ".parquet":
        return _read_parquet(path)
    text = _read_text(path)
    if suffix in (".csv", ".tsv"):
        return _read_csv(text, path.name, "," if suffix == ".csv" else "\t")
    return _read_json(text, path.name) if suffix == ".json" else _read_lines(text, path.name)


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"`{path.name}`, line {line}, breaks `the file is UTF-8`: found the byte 0x{data[error.start]:02x}; "
            "save it as UTF-8."
        ) from None


def _read_csv(text: str, name: str, delimiter: str) -> list[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(header, name, delimiter)
            elif len(cells) != len(header):
                raise DataError(
                    f"`{name}`, line {reader.line_num}, breaks `as many fields as the header`: "
                    f"found {len(cells)}, the header has {len(header)}; quote fields that hold the separator."
                )
            else:
                rows.append(Row(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"`{name}`, line {reader.line_num}, breaks `the line is CSV`: {error}; quote it, or use JSON Lines."
        ) from None
    return rows


def _check_header(header: list[str], name: str, delimiter: str) -> None:
    if "" in header:
        raise DataError(f"`{name}` breaks `every column has a name`: column {header.index('') + 1} has none; name it.")
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"`{name}` breaks `column names differ`: `{twice}` occurs twice; rename one.")
    other = next((mark for mark in (",", ";", "\t") if mark != delimiter and len(header[0].split(mark)) > 1), None)
    if len(header) == 1 and other is not None:
        advice = "name the file `.tsv`" if other == "\t" else "save it with commas"
        raise DataError(
            f"`{name}` breaks `fields are separated by {delimiter!r}`: its header `{header[0][:60]}` looks separated "
            f"by {other!r}; {advice}."
        )


def _read_lines(text: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    # Not splitlines(): JSON strings may hold U+2028 and its kin unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_json_row(_parse(line, f"`{name}`, line {number},"), f"`{name}`, line {number},"))
    return rows


def _read_json(text: str, name: str) -> list[dict[str, Any]]:
    value = _parse(text, f"`{name}`")
    if not isinstance(value, list):
        raise DataError(
            f"`{name}` breaks `a .json file is an array of objects`: found {type(value).__name__}; "
            "write an array, or one object per line in a .jsonl file."
        )
    return [_json_row(item, f"`{name}`, row {number},") for number, item in enumerate(value, start=1)]


def _json_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where} breaks `a row is a JSON object`: found {type(value).__name__} {value!r:.60}.")
    return Row(value)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        hint = "; one object per line belongs into a .jsonl file" if error.msg == "Extra data" else ""
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise DataError(f"{where} breaks `the text is JSON`: {error.msg} at {place}{hint}.") from None
    except RecursionError:
        raise DataError(f"{where} breaks `nesting is at most a few hundred deep`; flatten it.") from None
    except ValueError as error:
        raise DataError(f"{where} breaks `the text is JSON`: {error}.") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number; write null")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice in one object; keep one")
    return found


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(_NEEDS.format(what=f"`{path.name}`")) from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = _one_line(error).replace(f"'{path}'", "").replace(str(path), path.name)
        raise DataError(f"`{path.name}` breaks `the file is Parquet`: {reason}.") from None
    return [_row(item, number) for number, item in enumerate(rows, start=1)]


_NEEDS = "{what} breaks `pyarrow and datasets are installed`; run `pip install 'vitrify[compile]'`."


def _load_folder(folder: Path, split: str | None) -> list[dict[str, Any]]:
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    if not saved and not any(item.suffix.lower() in SUFFIXES for item in folder.rglob("*") if item.is_file()):
        raise DataError(f"The folder `{folder.name}` breaks `the folder holds data`: no {', '.join(SUFFIXES)} in it.")
    try:
        import datasets
    except ImportError:
        raise DataError(_NEEDS.format(what=f"The folder `{folder.name}`")) from None
    try:
        found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"The folder `{folder.name}` breaks `the folder is a Hugging Face dataset`: {_one_line(error)}; "
            "or name one of its files."
        ) from error
    return _from_datasets(found, f"`{folder.name}`", split)


def _load_hub(text: str, hub: Hub | None) -> list[dict[str, Any]]:
    match = _HUB_NAME.fullmatch(text)
    if match is None:
        raise DataError(f"`{text}` breaks `org/name/config:split`; write the dataset's name so.")
    path, config, split = match["path"], match["config"], match["split"]
    failures: tuple[type[Exception], ...] = (OSError, ValueError, LookupError)
    if hub is None:
        try:
            import datasets
        except ImportError:
            raise DataError(_NEEDS.format(what=f"`{text}`")) from None
        hub = datasets.load_dataset
        failures = (*failures, datasets.exceptions.DatasetsError)
    try:
        found = hub(path, name=config, split=split)
    except failures as error:
        raise DataError(
            f"`{text}` breaks `the dataset can be loaded`: {_one_line(error)}; check the name, or name a local file "
            "by its path."
        ) from error
    return _from_datasets(found, f"`{text}`")


def _from_datasets(found: Any, where: str, split: str | None = None) -> list[dict[str, Any]]:
    if isinstance(found, Mapping):  # a DatasetDict: several splits
        names = [str(name) for name in found]
        if split is None and len(names) > 1:
            raise DataError(
                f"{where} breaks `one split`: found {', '.join(names)}; name one, such as `<dataset>:{names[0]}`."
            )
        chosen = names[0] if split is None else split
        if chosen not in found:
            raise DataError(f"{where} breaks `the split exists`: no `{chosen}`; {nearest(chosen, names)}")
        found = found[chosen]
    elif split is not None and str(getattr(found, "split", split)) != split:
        raise DataError(f"{where} breaks `the split exists`: found only `{found.split}`.")
    if not hasattr(found, "__len__"):
        raise DataError(f"{where} breaks `the dataset has a length`: it streams; take rows of it into a list first.")
    return [_row(item, number) for number, item in enumerate(found, start=1)]


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__

"""What the command line's words name: a program, rows, an artifact with its model, an input's value."""

import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from .programs.artifact import Artifact, inputs_of, read_artifact
from .programs.models import Model, resolve_lm
from .programs.runtime import run_artifact
from .signatures.errors import DataError, ProgramError, RequestError, VitrifyError, nearest
from .signatures.values import jsonable


def load_program(spec: str) -> Any:
    """Return the program that `file.py:Name` names: a module, its class, or a function that makes one."""
    import dspy

    from .compiler.importing import load_object

    found = load_object(spec, kind="program")
    if isinstance(found, dspy.Module):
        return found
    if not callable(found):
        raise ProgramError(
            f"{spec} is a {type(found).__name__}: `a program is a dspy.Module, its class, or a function that "
            "makes one`."
        )
    needed = _needed(found)
    if needed:
        raise ProgramError(
            f"{spec} needs the argument {needed[0]!r}: `a program is made without arguments`; name a function that "
            "makes "
            f"it, such as `def make(): return {getattr(found, '__name__', 'Program')}({needed[0]}=...)`."
        )
    try:
        program = found()
    except Exception as error:
        raise ProgramError(f"{spec} can't be made: {type(error).__name__}: {str(error)[:300]}") from error
    if not isinstance(program, dspy.Module):
        raise ProgramError(f"{spec} makes a {type(program).__name__}: `a program is a dspy.Module`.")
    return program


def _needed(found: Any) -> list[str]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def load_table(source: str) -> list[dict[str, Any]]:
    """Return the rows that a path or a name stands for."""
    from .compiler.rows import load_rows

    return load_rows(source)


def open_artifact(path: Path, *, program: str | None, lm: str | None, api_base: str | None) -> Any:
    """Return the program in an artifact, ready to be called."""
    artifact = read_artifact(path)
    if program is None and artifact.program.kind == "class":
        raise ProgramError(
            f"{path} needs its class to run ({artifact.program.reason}): name it with --program, such as "
            f"--program {artifact.program.import_path or 'file.py:' + artifact.name}."
        )
    module = None if program is None else load_program(program)
    name = artifact.model.name if lm is None else lm
    model = resolve_lm(name, api_base=api_base)
    if name == artifact.model.name:
        model = Model(model.lm, {**artifact.model.decoding, **model.decoding})
    return run_artifact(artifact, model, program=module, name=str(path))


def parse_inputs(given: Sequence[str], artifact: Artifact) -> dict[str, Any]:
    """Return inputs given as NAME=VALUE; a value is JSON where the program's field isn't text."""
    known = inputs_of(artifact)
    inputs: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise RequestError(f"`-i` is NAME=VALUE, got {item!r}.")
        if name not in known:
            raise RequestError(f"`-i {name}=...`: the program has no input {name!r}; {nearest(name, list(known))}")
        inputs[name] = value if _is_text(name, artifact) else _json_or_text(value)
    missing = [name for name, required in known.items() if required and name not in inputs]
    if missing:
        raise RequestError(f"the input {missing[0]!r} is missing: give it with -i {missing[0]}=...")
    return inputs


def _is_text(name: str, artifact: Artifact) -> bool:
    """Say whether a predictor's field of this name is plain text; what no predictor names isn't known to be."""
    kinds = [
        field.get("type")
        for record in artifact.predictors
        if record.signature is not None
        for field in record.signature["fields"]
        if field["name"] == name and field["role"] == "input"
    ]
    return bool(kinds) and all(kind == "str" for kind in kinds)


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def stream_rows(loaded: Any, source: str, concurrency: int) -> Iterator[dict[str, Any]]:
    """Yield one record for each row, in order: its outputs, or an `error`; never more than a window is held."""
    known = inputs_of(loaded.artifact)
    rows = _stdin_rows() if source == "-" else iter(load_table(source))
    with ThreadPoolExecutor(concurrency) as pool:
        window: list[Future[dict[str, Any]]] = []
        for row in islice(rows, 4 * concurrency):
            window.append(pool.submit(_record, loaded, known, row))
        while window:
            yield window.pop(0).result()
            for row in islice(rows, 1):
                window.append(pool.submit(_record, loaded, known, row))


def _stdin_rows() -> Iterator[dict[str, Any]]:
    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"stdin, line {number}, is no valid JSON ({error}); each line is one object.") from error
        if not isinstance(row, dict):
            raise DataError(f"stdin, line {number}, is a {type(row).__name__}: `each line is one JSON object`.")
        yield row


def _record(loaded: Any, known: Any, row: dict[str, Any]) -> dict[str, Any]:
    try:
        prediction = loaded(**{name: row[name] for name in known if name in row})
    except VitrifyError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a row's failure is data: the other rows still run
        return {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"}
    return {name: jsonable(value) for name, value in prediction.items()}

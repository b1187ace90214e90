"""What the command line's words name: a program, rows, an artifact with its model, an input's value."""

import inspect
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .boundary import WRONG_REQUEST, user_error
from .programs.artifact import Artifact, check_writable, inputs_of, read_artifact
from .programs.lm import LMError
from .programs.models import Model, resolve_lm
from .programs.prediction import Prediction, requests_of
from .programs.runtime import patience, run_artifact
from .signatures.errors import ArtifactError, DataError, ProgramError, RequestError, nearest
from .signatures.values import jsonable
from .tallied import Tallied


def load_program(spec: str) -> Any:
    """Return the program that `file.py:Name` names: a module, its class, or a function that makes one."""
    import dspy

    from .compiler.importing import load_object

    found = load_object(spec, kind="program")
    if isinstance(found, dspy.Module):
        return found
    if isinstance(found, type) and issubclass(found, dspy.Signature):
        raise ProgramError(
            f"{spec} is a signature: `a program is a dspy.Module`; put it into one, such as "
            f"`program = dspy.Predict({found.__name__})`, and name that."
        )
    if not callable(found):
        raise ProgramError(
            f"{spec} is a {type(found).__name__}: `a program is a dspy.Module, its class, or a function that "
            "makes one`."
        )
    needed = _needed(found)
    if needed:
        made = f"{getattr(found, '__name__', 'Program')}({', '.join(f'{name}=...' for name in needed)})"
        raise ProgramError(
            f"{spec} needs {'the argument' if len(needed) == 1 else 'arguments'} {', '.join(needed)}: `a program is "
            f"made without arguments`; name a function that makes it, such as `def make(): return {made}`."
        )
    try:
        program = found()
    except Exception as error:
        raise ProgramError(f"{spec} can't be made: {type(error).__name__}: {str(error)[:300]}") from error
    if not isinstance(program, dspy.Module):
        raise ProgramError(f"{spec} makes a {type(program).__name__}: `a program is a dspy.Module`.")
    return program


def _needed(found: Any) -> list[str]:
    # A dspy.Module's metaclass takes anything; its __init__ says what is asked for.
    is_class = isinstance(found, type)
    try:
        signature = inspect.signature(getattr(found, "__init__") if is_class else found)  # noqa: B009 - mypy
        parameters = list(signature.parameters.values())[is_class:]
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def load_table(source: str) -> list[dict[str, Any]]:
    """Return the rows that a path or a name stands for."""
    from .compiler.rows import load_rows

    return load_rows(source)


def parse_price(text: str | None) -> tuple[float, float] | None:
    """Return the two prices that `--price` gives."""
    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"`--price` is two numbers, like 0.15,0.60, got {text!r}.") from None
    return prompt, completion


def check_output(path: Path, option: str) -> None:
    """Raise ArtifactError unless a file can be made at `path`; asked before money is spent."""
    if path.is_dir():
        raise ArtifactError(f"{option} {path} is a folder: `{option} names a file`; name one in it.")
    check_writable(path)
    try:
        # Permissions alone don't tell: the file system may be read-only, or none at all as /proc.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ArtifactError(
            f"{option} {path} can't be written ({str(error.strerror).lower()}); name another path."
        ) from error


def open_artifact(
    path: Path,
    *,
    program: str | None,
    lm: str | None,
    api_base: str | None,
    timeout: float | None = None,
    retries: int | None = None,
) -> Any:
    """Return the program in an artifact, ready to be called."""
    artifact = read_artifact(path)
    if program is None and artifact.program.kind == "class":
        raise ProgramError(
            f"{path} needs its class to run ({artifact.program.reason}): name it with --program, such as "
            f"--program {artifact.program.import_path or 'file.py:' + artifact.name}."
        )
    module = None if program is None else load_program(program)
    name = artifact.model.name if lm is None else lm
    model = resolve_lm(name, api_base=api_base, **patience(name, api_base, timeout, retries))
    if name == artifact.model.name:
        model = Model(model.lm, {**artifact.model.decoding, **model.decoding})
    return run_artifact(artifact, Model(Tallied(model.lm), model.decoding), program=module, name=str(path))


def parse_inputs(given: Sequence[str], artifact: Artifact) -> dict[str, Any]:
    """Return inputs given as NAME=VALUE; a value is JSON where the program's field isn't text."""
    known = inputs_of(artifact)
    inputs: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise RequestError(f"`-i` is NAME=VALUE, got {item!r}.")
        if name in inputs:
            raise RequestError(f"`-i {name}=...` is given twice: `one value for each input`; rows go in with --input.")
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


def predict(loaded: Any, inputs: Mapping[str, Any]) -> Any:
    """Return a loaded program's prediction; whatever goes wrong is one of our errors."""
    try:
        return loaded(**inputs)
    except Exception as error:  # whatever the user's class raises
        raise user_error(error, loaded.artifact.name) from error


def stream_rows(
    loaded: Any, source: str, concurrency: int, *, usage: bool = False
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield a record for each row, in order, and whether it is a prediction; else its `error` says why there is none.

    With `usage` a record also says under `_usage` what the row took. Rows are read while others run, and never more
    than a window ahead of what was yielded.

    Raises:
        DataError: If a row can't be read; those before it have been yielded.
        LMError: If the first row shows that no row can be answered: a wrong key, an unknown model, no server.
    """
    stream = _Stream(loaded, source, concurrency, usage)
    try:
        yield from stream
    finally:
        stream.close()


class _Stream:
    """Rows under way: a thread reads them and hands them to workers; the results come out in order."""

    def __init__(self, loaded: Any, source: str, concurrency: int, usage: bool) -> None:
        rows = _stdin_rows() if source == "-" else iter(_typed(load_table(source), loaded.artifact))
        self._loaded = loaded
        self._usage = usage
        self._known = inputs_of(loaded.artifact)
        self._room = threading.Semaphore(4 * concurrency)
        self._pool = ThreadPoolExecutor(concurrency)
        self._results: SimpleQueue[Future[Any] | BaseException | None] = SimpleQueue()
        self._closed = False
        threading.Thread(target=self._read, args=(rows,), name="vitrify rows", daemon=True).start()

    def _read(self, rows: Iterator[dict[str, Any]]) -> None:
        end: BaseException | None = None
        try:
            for row in rows:
                self._room.acquire()
                if self._closed:
                    return
                self._results.put(self._pool.submit(self._outcome, row))
        except Exception as error:  # noqa: BLE001 - raised again where the results are read
            end = error
        self._results.put(end)

    def _outcome(self, row: dict[str, Any]) -> tuple[Any, float]:
        began = time.perf_counter()
        try:
            found = predict(self._loaded, {name: row[name] for name in self._known if name in row})
        except Exception as error:  # noqa: BLE001 - a row's failure is data: the other rows still run
            found = error
        return found, time.perf_counter() - began

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bool]]:
        answered = False
        while (item := self._results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            found, seconds = item.result()
            self._room.release()
            if isinstance(found, LMError) and found.cause in WRONG_REQUEST and not answered:
                raise found
            answered = True
            failed = isinstance(found, Exception)
            record: dict[str, Any] = {"error": str(found)} if failed else fields_of(found)
            if self._usage:
                record["_usage"] = usage_of(None if failed else found, seconds)
            yield record, not failed

    def close(self) -> None:
        """Begin nothing more, and give up what is under way."""
        self._closed = True
        self._room.release()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._loaded.close()


def fields_of(prediction: Any) -> dict[str, Any]:
    """Return a prediction's fields as JSON; what a program returns instead of a prediction is its `output`."""
    items = prediction.items() if hasattr(prediction, "items") else [("output", prediction)]
    return {name: jsonable(value) for name, value in items}


def usage_of(prediction: Any, seconds: float) -> dict[str, Any]:
    """Return what one call of a program took: tokens, seconds and, where they are counted, its requests."""
    told = prediction.get_lm_usage() if hasattr(prediction, "get_lm_usage") else None
    used: dict[str, Any] = {
        name: sum(int(model.get(name) or 0) for model in (told or {}).values())
        for name in ("prompt_tokens", "completion_tokens")
    }
    if isinstance(prediction, Prediction):
        used = {"calls": requests_of(prediction), **used}
    return {**used, "seconds": round(seconds, 4)}


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


def field_types(artifact: Artifact) -> dict[str, Any]:
    """Return the types of the numbers and truth values among a program's fields, for rows that hold only text."""
    kinds = {"int": int, "float": float, "bool": bool}
    types: dict[str, Any] = {}
    for record in artifact.predictors:
        for field in (record.signature or {}).get("fields", ()):
            if isinstance(field["type"], str):
                types[field["name"]] = str if field["type"] == "str" else types.get(field["name"], field["type"])
    return {name: kinds[kind] for name, kind in types.items() if kind in kinds}


def _typed(rows: list[dict[str, Any]], artifact: Artifact) -> list[dict[str, Any]]:
    """Return rows with the inputs' text as what the program's fields say; every required input must be a column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name, required in inputs_of(artifact).items():
        if required and name not in columns:
            raise DataError(
                f"The rows break `every input of the program is a column`: no column `{name}`; {nearest(name, columns)}"
            )
    types = {name: kind for name, kind in field_types(artifact).items() if name in inputs_of(artifact)}
    return [{name: _number(value, types.get(name)) for name, value in row.items()} for row in rows]


def _number(value: Any, kind: Any) -> Any:
    if kind is None or not isinstance(value, str):
        return value
    if kind is bool:
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    try:
        return kind(value)
    except ValueError:
        return value

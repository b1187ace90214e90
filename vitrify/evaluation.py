"""evaluate(): a loaded program's score on data, row by row."""

import csv
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from .boundary import user_error
from .compiler.data import Dataset, Example, describe_source, load_rows, to_dataset
from .compiler.metric import MetricBug, MetricSpec, StockMetric, call_metric, required_labels, resolve_metric
from .loading import field_types, fields_of
from .programs.artifact import Artifact, inputs_of
from .programs.lm import LMError, Usage
from .programs.runtime import Unreadable
from .signatures.errors import ArtifactError, DataError, nearest
from .signatures.values import jsonable
from .tallied import Tallied


@dataclass(frozen=True)
class Row:
    """One row's result: `failure` says why there is no prediction, and its score is then the failure score, 0."""

    example: Example
    prediction: dict[str, Any]
    score: float
    feedback: str | None
    failure: str | None


@dataclass(frozen=True)
class Evaluation:
    """A program's result on data."""

    artifact: Artifact
    metric: str
    rows: tuple[Row, ...]
    seconds: float
    usage: Usage = field(default_factory=Usage)
    calls: int = 0

    @property
    def score(self) -> float:
        """The mean score."""
        return sum(row.score for row in self.rows) / len(self.rows)

    @property
    def failures(self) -> int:
        """Rows without a prediction."""
        return sum(row.failure is not None for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON."""
        return {
            "program": self.artifact.name,
            "metric": self.metric,
            "score": self.score,
            "n": len(self.rows),
            "failures": self.failures,
            "calls": self.calls,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "seconds": round(self.seconds, 3),
        }


def evaluate(loaded: Any, data: Any, metric: Any, *, concurrency: int = 16) -> Evaluation:
    """Return the score of a loaded program on every row of `data`.

    Raises:
        DataError: If a column is missing.
        LMError: If the language model can't be reached; that never becomes a score.
    """
    scored = resolve_metric(metric)
    return evaluate_examples(loaded, dataset_of(loaded.artifact, data, scored), scored, concurrency=concurrency)


def dataset_of(artifact: Artifact, data: Any, metric: MetricSpec) -> Dataset:
    """Return rows as examples of an artifact's inputs; every label that the metric is known to read is a column."""
    known = inputs_of(artifact)
    dataset = to_dataset(
        load_rows(data),
        input_names=[name for name, required in known.items() if required],
        optional_inputs=[name for name, required in known.items() if not required],
        types={**field_types(artifact), **_container_types(artifact)},
        source=describe_source(data),
    )
    for name in required_labels(metric):
        if name not in dataset.label_names and name not in dataset.input_names:
            raise DataError(
                f"The data breaks `the metric's label is a column`: there is no column `{name}`; "
                f"{nearest(name, list(dataset.label_names + dataset.input_names))}"
            )
    return dataset


def _container_types(artifact: Artifact) -> dict[str, Any]:
    """Return the types of lists and tables among a program's fields, which rows of CSV hold as JSON text."""
    from .signatures.types import python_type, type_from_json

    types: dict[str, Any] = {}
    for record in artifact.predictors:
        for item in (record.signature or {}).get("fields", ()):
            kind = str if item["type"] == "str" else python_type(type_from_json(item["type"]))
            types[item["name"]] = str if kind is str else types.get(item["name"], kind)
    return {name: kind for name, kind in types.items() if get_origin(kind) in (list, dict)}


def evaluate_examples(
    loaded: Any, examples: Iterable[Example], metric: MetricSpec, *, concurrency: int = 16, failure_score: float = 0.0
) -> Evaluation:
    """Return the score of a loaded program on examples; a row without a prediction counts `failure_score`."""
    began = time.monotonic()
    judge = _judge(metric, loaded)
    pool = ThreadPoolExecutor(concurrency)
    try:
        futures = [pool.submit(_row, loaded, metric, example, judge, failure_score) for example in examples]
        rows = tuple(future.result() for future in futures)
    except BaseException:
        # Give up what is under way: nobody waits for a server after Ctrl-C.
        pool.shutdown(wait=False, cancel_futures=True)
        loaded.close()
        raise
    pool.shutdown()
    lm = loaded.model.lm
    calls, usage = (lm.calls, lm.usage) if isinstance(lm, Tallied) else (0, Usage())
    return Evaluation(loaded.artifact, metric.name, rows, time.monotonic() - began, usage, calls)


def _judge(metric: MetricSpec, loaded: Any) -> Any:
    """Return the model that a metric may ask itself, as a `dspy.LM`; a stock metric asks none."""
    if isinstance(metric.call, StockMetric):
        return None
    import dspy

    from .programs.bridge import EngineLM

    return dspy.settings.lm or EngineLM(loaded.model.lm, **dict(loaded.model.decoding))


def _row(loaded: Any, metric: MetricSpec, example: Example, judge: Any, failure_score: float) -> Row:
    try:
        prediction = loaded(**example.own_inputs())
    except Unreadable as error:
        return Row(example, {}, failure_score, None, str(error))
    except Exception as error:
        if type(error).__name__ == "AdapterParseError":  # DSPy's, of a program that runs through it
            return Row(example, {}, failure_score, None, str(error).strip().partition("\n")[0])
        raise user_error(error, f"{loaded.artifact.name}, on row {example.row},") from error
    try:
        score = call_metric(metric, example, prediction, None, lm=judge)
    except MetricBug as error:
        refused = user_error(error.__cause__, metric.name) if isinstance(error.__cause__, Exception) else None
        if isinstance(refused, LMError):  # a judge that couldn't be asked is no bug of the metric's
            raise refused from error
        raise
    return Row(example, fields_of(prediction), score.value, score.feedback, None)


def write_table(result: Evaluation, path: Path) -> None:
    """Write one line a row: its inputs, the prediction, what was expected, the score and the failure."""
    names = list(dict.fromkeys(name for row in result.rows for name in row.example.inputs))
    outputs = list(dict.fromkeys(name for row in result.rows for name in row.prediction))
    labels = list(dict.fromkeys(name for row in result.rows for name in row.example.labels))
    header = [
        "row",
        *names,
        *(f"predicted.{name}" for name in outputs),
        *(f"expected.{name}" for name in labels),
        "score",
        "feedback",
        "failure",
    ]
    try:
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            writer = csv.writer(stream)
            writer.writerow(header)
            for row in result.rows:
                writer.writerow(
                    [
                        row.example.row,
                        *_cells(row.example.inputs, names),
                        *_cells(row.prediction, outputs),
                        *_cells(row.example.labels, labels),
                        row.score,
                        row.feedback or "",
                        row.failure or "",
                    ]
                )
    except OSError as error:
        raise ArtifactError(f"{path} can't be written ({error.strerror}); name another path with --csv.") from error


def _cells(values: Any, names: Sequence[str]) -> list[str]:
    return [_cell(values[name]) if name in values else "" for name in names]


def _cell(value: Any) -> str:
    as_json = jsonable(value)
    return as_json if isinstance(as_json, str) else json.dumps(as_json, ensure_ascii=False)

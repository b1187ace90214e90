"""split_pass(): the rows of a compile in train, select and sealed test, and what is odd about them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..programs.candidate import fits
from ..signatures.errors import DataError
from ..signatures.values import jsonable
from .metric import required_labels
from .run import Run
from .splits import Splits, split
from .state import Job

MOST_SELECT = 400
"""Rows of the select set that are used: beyond that, more rows tell less than more candidates."""

MOST_TEST = 1000
"""Rows of the sealed test that are used, unless it is the user's own: they show a gain of 3 points or so."""


def split_pass(job: Job, run: Run) -> Splits:
    """Divide the rows into train, select and sealed test, by content."""
    run.begin("split")
    splits = split(job.dataset, seed=job.seed, group=job.options.group, select=job.select, test=job.test)
    splits = replace(
        splits,
        select=splits.select if job.select is not None else splits.select[:MOST_SELECT],
        test=splits.test if job.test is not None else splits.test[:MOST_TEST],
    )
    splits, shown = _without_shown(job, splits)
    _check_sets(job, splits)
    if shown:
        run.note(
            f"{shown} rows stand among the demonstrations that the program or the earlier artifact brings: they were "
            "moved out of the select and test sets, into train."
        )
    if job.dataset.duplicates:
        run.note(f"{job.dataset.duplicates} rows stand in the data more than once and count once.")
    if job.dataset.conflicts:
        run.note(f"{job.dataset.conflicts} rows have the inputs of another row and other labels.")
    if splits.note:
        run.note(splits.note)
    for note in label_notes(job):
        run.note(note)
    if job.budget.weighed and job.options.max_tokens is None:
        run.note(
            f"Replies have at most {job.model.decoding['max_tokens']} tokens (max_tokens), so that a budget in tokens "
            "or dollars holds for each call."
        )
    return splits


def _without_shown(job: Job, splits: Splits) -> tuple[Splits, int]:
    """Move rows that are demonstrations already out of select and test: nobody is judged by what it is shown."""
    names = [item.name for item in job.target.spec.inputs]
    candidates = (job.target.spec.baseline, job.start)
    demos = [demo for one in candidates for params in one.params.values() for demo in params.demos]
    known = {_said(demo, names) for demo in demos} - {None}
    if not known:
        return splits, 0
    moved = [row for row in (*splits.select, *splits.test) if _said(row.inputs, names) in known]
    gone = {row.id for row in moved}
    return replace(
        splits,
        train=(*splits.train, *moved),
        select=tuple(row for row in splits.select if row.id not in gone),
        test=tuple(row for row in splits.test if row.id not in gone),
    ), len(moved)


def _said(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return a row's inputs as one normalised text, or None where one of them isn't there."""
    if not names or any(name not in values for name in names):
        return None
    return " ".join(json.dumps([jsonable(values[name]) for name in names], ensure_ascii=False).casefold().split())


def label_notes(job: Job) -> list[str]:
    """Return what is odd about the labels: values that a field can't have, outputs that the metric doesn't score."""
    notes = []
    scored = required_labels(job.metric)
    for spec in job.target.spec.predictors:
        for field in spec.signature.outputs if spec.signature is not None else ():
            if field.name not in job.dataset.label_names:
                continue
            labelled = [row for row in job.dataset if row.labels.get(field.name) is not None]
            odd = [row for row in labelled if not fits(field, row.labels[field.name])]
            if odd:
                notes.append(
                    f"{len(odd)} of {len(labelled)} rows have a `{field.name}` that {spec.path} can't answer, the "
                    f"first {odd[0].labels[field.name]!r:.60} in row {odd[0].row}: they are never right, nor shown."
                )
            if scored and field.name not in scored:
                notes.append(
                    f"The metric {job.metric.name} doesn't score `{field.name}`, which {spec.path} writes and the data "
                    "has: a metric of your own (file.py:function) can score both."
                )
    return notes


def _check_sets(job: Job, splits: Splits) -> None:
    for name in ("train", "select", "test"):
        if not getattr(splits, name):
            raise DataError(
                f"{job.dataset.source or 'The data'} breaks `train, select and test set have rows`: of its "
                f"{len(job.dataset)} rows none is left for the {name} set; give at least 20 rows, or sets of your own "
                "with select and test (--select, --test)."
            )

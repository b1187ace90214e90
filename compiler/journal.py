"""StudyJournal: the search of a compile in a file that optuna-dashboard opens, while it goes and afterwards.

Optuna's journal storage writes and syncs each operation by itself; here operations are kept and written together, at
most once a second. Nothing reads the file to decide anything: without it the same artifact comes out.

A second study holds what is believed of each point at the end.

A study can't change the choices of a parameter. Where the space grows, its study is deleted and begun again with what
was told so far; a run that is continued begins again too. Both are lines behind the others, so that a dashboard that is
open stays so.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from .space import Point, SearchSpace
from .state import Levels
from .strategy import DemoLevel, InstructionLevel
from .study import distributions, estimates, quiet

SECONDS = 1.0
"""The least time between two writes."""

LARGEST = 4_000_000
"""Bytes above which a run that is continued begins with an empty file; a dashboard that is open must be told to."""

SHOWN = 300
"""Characters of an instruction that the study shows."""


class Lines(BaseJournalBackend):
    """The operations of a journal: read from a file once, then kept here and appended to it in groups."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]  # a kill may have cut the last line off
        try:
            self.logs: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
            JournalStorage(self)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError):  # no journal of ours
            whole = b""
        if len(whole) > LARGEST:
            whole = b""
        if not whole:
            self.logs = []
        if whole != text:
            path.write_bytes(whole)
        self.written = len(self.logs)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the operations from a number on."""
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep operations until `write`."""
        self.logs.extend(logs)

    def write(self) -> None:
        """Append what isn't there yet, at once; raises OSError."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in self.logs[self.written :])
        if text:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, text.encode())
            finally:
                os.close(file)
            self.written = len(self.logs)


class StudyJournal:
    """One search as a study in a file; used by one thread.

    A point is a trial that runs until the search ends, with its mean after each block. Where the file can't be written,
    nothing more is: `problem` says why.

    Attributes:
        path: The file.
        problem: What kept the file from being written, or None.
    """

    def __init__(self, path: Path, name: str, space: SearchSpace) -> None:
        self.path, self.name, self.space = path, name, space
        self.problem: str | None = None
        self._means: dict[Point, dict[int, float]] = {}
        self._news: dict[Point, list[int]] = {}
        self._trials: dict[Point, int] = {}
        self._study: Study | None = None
        self._lines: Lines | None = None
        self._last = -SECONDS
        self.write()

    def told(self, point: Point, scores: Sequence[float]) -> None:
        """Hear of a block of a point, in the order of the search."""
        point = (*point, *(0,) * (len(self.space.slots) - len(point)))  # asked for before the space grew
        means = self._means.setdefault(point, {})
        before = max(means, default=0)
        n = before + len(scores)
        means[n] = (means.get(before, 0.0) * before + sum(scores)) / n
        self._news.setdefault(point, []).append(n)
        if time.monotonic() - self._last >= SECONDS:
            self.write()

    def grow(self, space: SearchSpace) -> None:
        """Move to a grown space: every known point has level 0 in the slots that are new."""
        more = len(space.slots) - len(self.space.slots)
        self._means = {(*point, *(0,) * more): means for point, means in self._means.items()}
        self.space, self._study = space, None

    def write(self) -> None:
        """Write what was told."""
        if self.problem is not None:
            return
        try:
            self._say()
            self._flush()
        except OSError as error:
            self.problem = f"{self.path.name} can't be written ({error.strerror}): the dashboard won't see this run."

    def finish(self, found: Study, notes: Mapping[str, Any]) -> None:
        """Write how the search ended.

        Args:
            found: The study of the result: its states, values and attributes count.
            notes: More attributes of the study.
        """
        if self.problem is not None:
            return
        try:
            study, trials = self._say(), found.get_trials(deepcopy=False)
            mine = study.get_trials(deepcopy=False)
            if [(trial.params, trial.distributions) for trial in mine] == [(t.params, t.distributions) for t in trials]:
                for live, final in zip(mine, trials, strict=True):
                    _close(study, live, final)
            else:  # Ctrl-C came between a block and its being told
                study = self._begin()
                study.add_trials(trials)
            for name, value in {**found.user_attrs, **notes, "state": "finished"}.items():
                study.set_user_attr(name, value)
            estimates(found, f"{self.name}: estimates", study._storage)
            self._flush()
        except OSError as error:
            self.problem = f"{self.path.name} can't be written ({error.strerror}): the dashboard won't see this run."

    def _say(self) -> Study:
        """Return the study, with a trial for each point that was told."""
        self._last = time.monotonic()
        study = self._study or self._begin()
        storage, choices = study._storage, distributions(self.space)
        for point, news in self._news.items():
            if point in self._trials:
                for n in news:
                    storage.set_trial_intermediate_value(self._trials[point], n, self._means[point][n])
                continue
            trial = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=dict(zip(choices, point, strict=True)),
                distributions=choices,
                intermediate_values=self._means[point],
            )
            self._trials[point] = storage.create_new_trial(study._study_id, template_trial=trial)
        self._news = {}
        return study

    def _begin(self) -> Study:
        """Begin the study anew; whatever the file held is deleted."""
        if self._lines is None:
            self._lines = Lines(self.path)
        storage = JournalStorage(self._lines)
        with quiet():
            for old in storage.get_all_studies():
                storage.delete_study(old._study_id)
            self._study = optuna.create_study(storage=storage, study_name=self.name, direction="maximize")
        self._study.set_user_attr("state", "searching")
        self._trials, self._news = {}, {point: [] for point in self._means}
        return self._study

    def _flush(self) -> None:
        if self._lines is not None:
            self._lines.write()


def _close(study: Study, live: FrozenTrial, final: FrozenTrial) -> None:
    """End a trial that runs as the result has it."""
    storage = study._storage
    for n, mean in final.intermediate_values.items():
        if live.intermediate_values.get(n) != mean:
            storage.set_trial_intermediate_value(live._trial_id, n, mean)
    for name, value in final.user_attrs.items():
        storage.set_trial_user_attr(live._trial_id, name, value)
    storage.set_trial_state_values(live._trial_id, state=final.state, values=final.values)


def in_words(levels: Levels) -> dict[str, list[str]]:
    """Return for each slot its levels in words, in the order of their numbers: texts cut to one line."""
    return {name: [_word(value) for value in levels.values[name]] for name in levels.slots}


def _word(value: Any) -> str:
    if isinstance(value, InstructionLevel):
        return shorten(f"{value.provenance.method}: {value.text}", SHOWN, placeholder=" …")
    if isinstance(value, DemoLevel):
        return f"{value.provenance.method}: {len(value.demos)} demonstrations"
    return str(value)

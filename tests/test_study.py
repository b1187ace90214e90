"""A search as an Optuna study: what it says, the file it is kept in, and what opens that file."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from vitrify.compiler import journal as journals
from vitrify.compiler.journal import StudyJournal
from vitrify.compiler.search import SearchOptions, SearchResult, search
from vitrify.compiler.space import Point, SearchSpace, Slot
from vitrify.compiler.study import estimates

import vitrify

from .desks import TICKETS, Desk, small

PLOTS = (
    "plot_optimization_history", "plot_slice", "plot_parallel_coordinate", "plot_param_importances",
    "plot_intermediate_values", "plot_contour", "plot_edf", "plot_rank", "plot_timeline",
)  # fmt: skip


class Table:
    """Scores with additive effects on the log-odds, the same noise for everybody on an example."""

    examples = 100

    def __init__(self, *levels: int) -> None:
        rng = np.random.default_rng(5)
        self.space = SearchSpace([Slot(f"s{slot}", n) for slot, n in enumerate(levels)])
        self.effects = [rng.normal(0, 1.2, n + 4) for n in levels]
        self.luck = rng.logistic(0, 1, self.examples)

    def score(self, point: Point, examples: Any) -> Any:
        logit = sum(float(effects[level]) for effects, level in zip(self.effects, point, strict=False))
        return (self.luck[list(examples)] + logit > 0).astype(float)


def reader(path: Path) -> JournalStorage:
    """Open a file as optuna-dashboard does."""
    return JournalStorage(JournalFileBackend(str(path)))


def loaded(path: Path, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=reader(path))


def names(storage: JournalStorage) -> list[str]:
    return sorted(study.study_name for study in storage.get_all_studies())


def searched(**more: Any) -> SearchResult:
    table = Table(5, 4)
    return search(table.space, table, budget=500, seed=0, **more)


@pytest.fixture(scope="module")
def found() -> SearchResult:
    return searched()


# What a study says.


def test_it_names_what_was_concluded(found: SearchResult) -> None:
    study, said = found.study, found.study.user_attrs
    trials = {tuple(trial.params[slot.name] for slot in found.space.slots): trial for trial in study.trials}
    assert trials[found.best].number == said["best"]
    assert trials[found.shipped].number == said["shipped"]
    assert trials[(0, 0)].number == said["baseline"]
    assert list(found.interval) == said["interval"]
    assert (found.estimate, found.probability, found.spent, found.reason) == tuple(
        said[name] for name in ("estimate", "probability", "evaluations", "reason")
    )
    json.dumps(said)


def test_the_finalists_are_complete_and_the_rest_pruned(found: SearchResult) -> None:
    study, said = found.study, found.study.user_attrs
    enough = min(found.trials[said[name]].n for name in ("best", "baseline"))
    for mine, trial in zip(found.trials, study.trials, strict=True):
        assert (TrialState.COMPLETE if mine.n >= enough else TrialState.PRUNED) == trial.state
    assert {TrialState.COMPLETE, TrialState.PRUNED} == {trial.state for trial in study.trials}
    assert said["best"] == study.best_trial.number


def test_trials_say_how_they_compare(found: SearchResult) -> None:
    for mine, trial in zip(found.trials, found.study.trials, strict=True):
        assert mine.n == trial.user_attrs["examples"] == max(trial.intermediate_values)
        assert mine.difference == trial.user_attrs["difference"]
    baseline = found.study.trials[found.study.user_attrs["baseline"]]
    assert 0 == baseline.user_attrs["estimate"] == baseline.user_attrs["difference"]


def test_the_estimates_are_a_study_in_which_all_trials_compare(found: SearchResult) -> None:
    believed = estimates(found.study)
    assert {TrialState.COMPLETE} == {trial.state for trial in believed.trials}
    assert found.study.user_attrs["best"] == believed.best_trial.number
    assert abs(believed.best_value - found.estimate) < 0.05
    assert [t.params for t in found.study.trials] == [t.params for t in believed.trials]


def test_a_space_that_grew_has_one_distribution_for_each_slot() -> None:
    table = Table(3, 3)
    grown = iter([{"s0": 2}, {"s2": 1}])
    result = search(
        table.space, table, budget=500, seed=0, options=SearchOptions(renewals=(8, 20)), renew=lambda *_: next(grown)
    )
    assert 1 == len({optuna.distributions.distribution_to_json(t.distributions["s0"]) for t in result.study.trials})
    assert {0, 1} == {trial.params["s2"] for trial in result.study.trials}
    assert {"s0", "s1", "s2"} == set(optuna.search_space.intersection_search_space(result.study.trials, True))
    assert {"s0", "s1", "s2"} == set(optuna.importance.get_param_importances(estimates(result.study)))


# The file.


def test_whoever_looks_sees_the_search_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SECONDS", 0.0)
    path = tmp_path / "study.journal"
    table = Table(3, 3)
    journal = StudyJournal(path, "desk", table.space)
    looking = reader(path)  # opened once, as a dashboard is
    assert ["desk"] == names(looking)
    journal.told((0, 0), [1.0, 0.0])
    journal.told((2, 1), [1.0, 1.0])
    journal.told((0, 0), [1.0, 1.0])
    (study,) = looking.get_all_studies()
    first, second = looking.get_all_trials(study._study_id)
    assert {TrialState.RUNNING} == {first.state, second.state}
    assert ({2: 0.5, 4: 0.75}, {2: 1.0}) == (first.intermediate_values, second.intermediate_values)
    # It grows: the same trials, with the wider choices.
    journal.grow(table.space.grown({"s0": 2, "s2": 1}))
    journal.told((4, 1, 1), [0.0, 0.0])
    journal.told((2, 1), [0.0, 0.0])  # was asked for before it grew
    (study,) = looking.get_all_studies()
    trials = looking.get_all_trials(study._study_id)
    assert [{"s0": 0, "s1": 0, "s2": 0}, {"s0": 2, "s1": 1, "s2": 0}, {"s0": 4, "s1": 1, "s2": 1}] == [
        trial.params for trial in trials
    ]
    assert {2: 1.0, 4: 0.5} == trials[1].intermediate_values
    widest = trials[0].distributions["s0"]
    assert isinstance(widest, optuna.distributions.CategoricalDistribution)
    assert 5 == len(widest.choices)


def test_at_the_end_the_file_holds_the_study_of_the_result(tmp_path: Path, found: SearchResult) -> None:
    path = tmp_path / "study.journal"
    table = Table(5, 4)
    journal = StudyJournal(path, "desk", table.space)

    class Telling(Table):
        def score(self, point: Point, examples: Any) -> Any:
            scores = super().score(point, examples)
            journal.told(point, scores.tolist())
            return scores

    result = search(table.space, Telling(5, 4), budget=500, seed=0)
    journal.finish(result.study, {"levels": {"s0": ["one"]}})
    assert ["desk", "desk: estimates"] == names(reader(path))
    study = loaded(path, "desk")
    assert _facts(result.study) == _facts(study) == _facts(found.study)
    assert {**result.study.user_attrs, "levels": {"s0": ["one"]}, "state": "finished"} == study.user_attrs
    assert result.study.best_trial.params == study.best_trial.params
    assert journal.problem is None


def _facts(study: optuna.Study) -> list[Any]:
    return [(t.params, t.value, t.state, t.intermediate_values, t.user_attrs, t.distributions) for t in study.trials]


def test_what_the_file_missed_is_made_good_at_the_end(tmp_path: Path, found: SearchResult) -> None:
    journal = StudyJournal(tmp_path / "study.journal", "desk", found.space)
    journal.told((0, 0), [1.0] * 5)
    journal.told((1, 2), [0.0] * 5)
    journal.finish(found.study, {})
    assert _facts(found.study) == _facts(loaded(journal.path, "desk"))


def test_a_run_that_is_continued_begins_the_file_again(tmp_path: Path, found: SearchResult) -> None:
    path = tmp_path / "study.journal"
    StudyJournal(path, "desk", found.space)
    looking = reader(path)
    for cut in (0, 7, 1):
        journal = StudyJournal(path, "desk", found.space)
        journal.told((0, 0), [1.0] * 5)
        journal.write()
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) - cut])  # a kill in the middle of a write
    journal = StudyJournal(path, "desk", found.space)
    journal.finish(found.study, {})
    assert ["desk", "desk: estimates"] == names(looking) == names(reader(path))
    assert _facts(found.study) == _facts(loaded(path, "desk"))


@pytest.mark.parametrize("text", [b"{]\n{}\n", b"\x00\xff", b"[1]\n", b'{"op_code": 77}\n'])
def test_a_file_that_is_no_journal_is_begun_anew(tmp_path: Path, text: bytes, found: SearchResult) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(text)
    StudyJournal(path, "desk", found.space).finish(found.study, {})
    assert ["desk", "desk: estimates"] == names(reader(path))


def test_a_file_that_grew_by_many_runs_is_begun_anew(tmp_path: Path, found: SearchResult,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(journals, "LARGEST", 100_000)
    path, sizes = tmp_path / "study.journal", []
    for _ in range(8):
        StudyJournal(path, "desk", found.space).finish(found.study, {})
        sizes.append(path.stat().st_size)
    assert max(sizes) < 100_000 + 2 * sizes[0]
    assert _facts(found.study) == _facts(loaded(path, "desk"))


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, found: SearchResult) -> None:
    path = tmp_path / "study.journal"
    path.mkdir()
    journal = StudyJournal(path, "desk", found.space)
    journal.told((0, 0), [1.0] * 5)
    journal.finish(found.study, {})
    assert "study.journal can't be written" in str(journal.problem)


# A compile.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a compile, with its artifact."""
    folder = tmp_path_factory.mktemp("compile") / "run"
    _compile(folder).save(folder / "artifact.json")
    return folder


def _compile(folder: Path, **more: Any) -> vitrify.Artifact:
    budget = vitrify.Budget(calls=700)
    data: Any = TICKETS[:120]
    return vitrify.compile(
        Desk(), data, "exact:team", lm="embedded", options=small(**more), budget=budget, run_dir=folder
    )


def test_a_compile_leaves_its_study(run: Path) -> None:
    study = loaded(run / "study.journal", "Desk")
    artifact = json.loads((run / "artifact.json").read_text())
    said = study.user_attrs
    assert artifact["selection"]["trials"] == len(study.trials)
    assert artifact["selection"]["slots"] == {name: len(words) for name, words in said["levels"].items()}
    assert artifact["selection"]["estimate"] == said["estimate"]
    assert ("baseline" == artifact["selection"]["shipped"]) == (said["shipped"] == said["baseline"])
    assert 0 == sum(trial.state == TrialState.RUNNING for trial in study.trials)
    assert 1 == len({json.dumps(t.distributions, default=repr, sort_keys=True) for t in study.trials})
    assert said["levels"]["route.instruction"][0].startswith("user: Find the team")
    assert "study" not in artifact


def test_again_the_same_and_without_the_file_the_same_artifact(run: Path, tmp_path: Path) -> None:
    facts, artifact = _facts(loaded(run / "study.journal", "Desk")), (run / "artifact.json").read_bytes()
    again = _compile(run).save(tmp_path / "again.json")
    assert artifact == again.read_bytes()
    assert facts == _facts(loaded(run / "study.journal", "Desk"))
    assert ["Desk", "Desk: estimates"] == names(reader(run / "study.journal"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.journal").mkdir()
    assert artifact == _compile(tmp_path / "run").save(tmp_path / "other.json").read_bytes()


def test_a_compile_that_was_interrupted_leaves_what_it_knew_and_ends_as_if_it_had_not_been(
    run: Path, tmp_path: Path
) -> None:
    class Stop:
        def update(self, snapshot: Any) -> None:
            if snapshot.stage == "search" and snapshot.trials > 6:
                raise KeyboardInterrupt

        def note(self, text: str) -> None:
            pass

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        _compile(folder, progress=Stop())
    study = loaded(folder / "study.journal", "Desk")
    assert "interrupted" == study.user_attrs["reason"]
    assert 6 < len(study.trials)
    assert 0 == sum(trial.state == TrialState.RUNNING for trial in study.trials)
    _compile(folder)
    assert _facts(loaded(run / "study.journal", "Desk")) == _facts(loaded(folder / "study.journal", "Desk"))


# What opens it.


@pytest.mark.parametrize("plots", ["optuna.visualization", "optuna.visualization.matplotlib"])
def test_optunas_figures(run: Path, plots: str) -> None:
    if plots.endswith("matplotlib"):
        pytest.importorskip("matplotlib").use("Agg")
    else:
        pytest.importorskip("plotly")
    module = importlib.import_module(plots)
    for name in ("Desk", "Desk: estimates"):
        study = loaded(run / "study.journal", name)
        for plot in PLOTS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure = getattr(module, plot)(study)
            marks = len(figure.data) if hasattr(figure, "data") else len(np.ravel(figure))
            empty = plot == "plot_intermediate_values" and name != "Desk"
            assert marks > 0 or empty, (name, plot)
            if plot == "plot_intermediate_values" and hasattr(figure, "data") and not empty:
                assert len(study.trials) == marks


def test_the_dashboard_opens_a_run(run: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()", str(run / "study.journal")]
    process = subprocess.Popen(
        [*words, "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            assert 200 == answer.status
            return json.loads(answer.read())

    try:
        until = time.monotonic() + 30
        while True:
            try:
                studies = get("/api/studies")["study_summaries"]
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, "the dashboard answers"
                time.sleep(0.1)
        assert ["Desk", "Desk: estimates"] == sorted(study["study_name"] for study in studies)
        number = next(study["study_id"] for study in studies if study["study_name"] == "Desk")
        study = get(f"/api/studies/{number}?" + urllib.parse.urlencode({"after": 0}))
        states = Counter(trial["state"] for trial in study["trials"])
        assert {"Complete", "Pruned"} == set(states)
        assert len(loaded(run / "study.journal", "Desk").trials) == sum(states.values())
        assert len(study["intersection_search_space"]) == len(study["union_search_space"]) > 0
        for other in studies:
            assert get(f"/api/studies/{other['study_id']}/param_importances")["param_importances"]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        if process.stderr is not None:
            process.stderr.close()

"""The search's benchmark: its worlds' truth, the real MIPROv2, rivals that keep to their calls, lines that resume."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vitrify.compiler.space import Point, SearchSpace, Slot

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))  # the scripts import each other so

worlds: Any = importlib.import_module("worlds")
tables: Any = importlib.import_module("tables")
rivals: Any = importlib.import_module("rivals")
mipro: Any = importlib.import_module("mipro")
lines: Any = importlib.import_module("lines")
report: Any = importlib.import_module("report")
command: Any = importlib.import_module("search")

SMALL = "default-1-light"


@pytest.mark.parametrize("kind", sorted(worlds.KINDS))
def test_the_truth_is_the_mean_of_many_examples(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worlds.ROWS, "light", 200_000)
    world = worlds.World(kind, 2, "light", 3)
    for point in (world.home, (5, 11, 2, 7)):
        scores = world.score(point, range(world.examples))
        assert abs(world.truth(point) - scores.mean()) < 5 * scores.std() / len(scores) ** 0.5


def test_a_world_is_the_same_whoever_asks() -> None:
    one, other = worlds.World("default", 2, "light", 5), worlds.World("default", 2, "medium", 5)
    points = [(0, 0, 0, 0), (5, 11, 5, 11), (1, 2, 3, 4)]
    assert [one.truth(p) for p in points] == [other.truth(p) for p in reversed(points)][::-1]
    for point in points:
        np.testing.assert_array_equal(one.score(point, range(100)), other.score(point, range(100)))
    assert one.truth((1, 2, 3, 4)) != worlds.World("default", 2, "light", 6).truth((1, 2, 3, 4))
    assert 72**2 == one.space.size
    np.testing.assert_allclose([one.logit(p) for p in points], one.logits(np.array(points)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["default", "coupled", "interaction"])
def test_nothing_beats_the_best_point(kind: str) -> None:
    for seed in (0, 1):
        world = worlds.World(kind, 1, "light", seed)
        assert max(world.space.points(), key=world.truth) == world.best()
        assert world.truth(world.floor()) <= world.truth(world.best())
        four = worlds.World(kind, 4, "light", seed)
        best = four.truth(four.best())
        levels = np.random.default_rng(seed).integers([6, 12] * 4, size=(20_000, 8))
        assert four.logits(levels).max() <= four.logits(np.array([four.best()]))[0]
        assert four.truth(four.floor()) <= best


def test_null_worlds_hold_nothing_and_good_baselines_are_good() -> None:
    null = worlds.World("null", 2, "light", 1)
    assert {null.truth(null.home)} == {null.truth(p) for p in [(1, 2, 3, 4), (5, 11, 0, 0)]}
    for kind, up in (("good1", 1.0), ("good2", 2.0)):
        found = []
        for seed in range(8):
            world = worlds.World(kind, 2, "light", seed)
            logits = world.logits(np.array(list(world.space.points())))
            found.append((world.logits(np.array([world.home]))[0] - logits.mean()) / logits.std())
        assert up - 0.4 < np.mean(found) < up + 0.4


def test_coupled_worlds_have_no_additivity() -> None:
    for seed in (0, 1):
        world = worlds.World("coupled", 2, "light", seed)
        points = np.array(list(world.space.points()))
        logits = world.logits(points)
        main = world.main_effects()
        additive = sum(effects[points[:, slot]] for slot, effects in enumerate(main))
        assert np.corrcoef(additive, logits)[0, 1] ** 2 < 0.5  # 16 of 71 degrees of freedom on average


@pytest.mark.parametrize(("auto", "predictors", "calls"), [("light", 1, 650), ("light", 2, 1200), ("medium", 1, 2130)])
def test_the_driver_runs_the_installed_miprov2(
    auto: str, predictors: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dspy

    assert type(mipro._optimizer(0, auto)) is dspy.MIPROv2
    asked: list[int] = []
    loop = dspy.MIPROv2._optimize_prompt_parameters

    def watched(self: Any, *args: Any) -> Any:
        asked.append(args[5])
        return loop(self, *args)

    monkeypatch.setattr(dspy.MIPROv2, "_optimize_prompt_parameters", watched)
    world = worlds.World("default", predictors, auto, 2)
    counter = rivals.Counter(world, 10**6)
    choice = mipro.mipro(world, counter, 2, auto)
    assert [mipro.auto_trials(auto, predictors)] == asked
    assert calls == counter.calls == mipro.auto_calls(auto, predictors)
    assert world.space.allows(choice)
    assert choice == mipro.mipro(world, rivals.Counter(world, 10**6), 2, auto)


def test_miprov2_finds_what_cannot_be_missed() -> None:
    class Obvious:
        """Each level is better than the one before, and no score is noisy."""

        space = SearchSpace([Slot("i", 4), Slot("d", 4)])
        home: Point = (2, 1)
        examples = 100

        def score(self, point: Point, examples: Any) -> Any:
            return np.full(len(examples), 0.1 * point[0] + 0.2 * point[1])

    task = Obvious()
    assert (3, 3) == mipro.mipro(task, rivals.Counter(task, 3000), 1)


@pytest.mark.parametrize("who", sorted({*rivals.SHARES, *rivals.RIVALS}))
def test_everybody_keeps_to_the_calls(who: str) -> None:
    cell = command.Cell(SMALL)
    found = rivals.run(who, cell.task(1), cell.budget, 1, cell.auto)
    most = cell.budget // rivals.SHARES.get(who, 1)
    assert 0.9 * most < found["calls"] <= most
    assert found["gain"] == pytest.approx(rivals.run(who, cell.task(1), cell.budget, 1, cell.auto)["gain"])


def test_a_counter_refuses_what_is_too_much() -> None:
    world = worlds.World("default", 1, "light", 1)
    counter = rivals.Counter(world, 10)
    counter.score(world.home, range(10))
    with pytest.raises(rivals.Overspent):
        counter.score(world.home, [0])


@pytest.mark.parametrize("who", ["mipro", "tpe", "random", "halving", "paired", "ours"])
@pytest.mark.parametrize("budget", [600, 1200])
def test_everybody_plays_a_list_of_points(who: str, budget: int) -> None:
    class Listed:
        """Twelve of 36 points were recorded; the later the better."""

        points = [(i, (2 * i + j) % 6) for i in range(6) for j in range(2)]
        space = SearchSpace([Slot("i", 6), Slot("d", 6)], points)
        home: Point = (3, 0)
        examples = 120

        def score(self, point: Point, examples: Any) -> Any:
            assert point in self.points
            rng = np.random.default_rng([7, *point])
            return (rng.random(self.examples) < 0.3 + 0.1 * point[0])[list(examples)].astype(float)

        def truth(self, point: Point) -> float:
            return 0.1 * point[0]

    found = rivals.run(who, Listed(), budget, 3)
    assert found["calls"] <= budget
    assert found["gain"] >= 0


def test_halving_pairs_or_does_not() -> None:
    world = worlds.World("default", 1, "light", 1)
    for paired in (True, False):
        book = rivals.Book(rivals.Counter(world, 100), np.random.default_rng(0), paired)
        seen: dict[Point, list[int]] = {}
        book.counter.score = lambda p, rows, seen=seen: seen.setdefault(p, []).extend(rows) or np.zeros(len(rows))
        for point in ((0, 1), (1, 0)):
            assert book.extend(point, 20) and book.extend(point, 30)
        assert 30 == len(set(seen[0, 1])) == len(set(seen[1, 0]))
        assert paired == (seen[0, 1] == seen[1, 0])
    assert [5, 10, 20, 40, 80, 100] == rivals.rungs(5, 100)
    assert 5 + 5 / 2 + 10 / 4 == rivals.bracket([5, 10, 20])


def test_lines_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines.jsonl"
    asked = ["--only", "worlds", "--cells", SMALL, "--rivals", "ours,random", "--out", str(path)]
    command.main([*asked, "--seeds", "0-2"])
    first = path.read_text()
    assert 6 == len(first.splitlines())
    path.write_text(first + '{"cell": "default-1-li')  # cut short
    command.main([*asked, "--seeds", "0-3"])
    text = path.read_text()
    assert text.startswith(first)
    assert 9 == len(lines.Lines(path).known)
    command.main([*asked, "--seeds", "0-3"])
    assert text == path.read_text()
    stale = [json.loads(line) for line in first.splitlines()]
    path.write_text(
        "".join(json.dumps({**line, "code": "old" if line["who"] == "ours" else line["code"]}) + "\n" for line in stale)
    )
    assert {"random", "truth"} == {key.who for key in lines.Lines(path).known}
    out = capsys.readouterr().out
    assert "tuning seeds 0 to 2" in out and SMALL in out


@pytest.mark.parametrize(
    "wrong", [("--rivals", "ours,nobody"), ("--cells", "default-1-*,default-2-*"), ("--cells", "x")]
)
def test_who_or_what_nobody_knows_is_an_error(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main([*wrong, "--report"])
    assert stopped.value.code == 2 and "must hold, but" in capsys.readouterr().err


def test_fingerprints_follow_the_code_of_the_search_alone() -> None:
    names = {path.name for path in (Path(lines.search.__file__).parent).glob("*.py")}
    closure = "\0".join(lines._closure(Path(lines.search.__file__).resolve()))
    assert "class Surrogate" in closure and "def generator" in closure
    assert "evaluate.py" in names and "class Evaluator" not in closure
    assert lines.fingerprint(SMALL, "ours") == lines.fingerprint(SMALL, "ours/2") != lines.fingerprint(SMALL, "mipro")
    assert lines.fingerprint(SMALL, "paired") != lines.fingerprint("rag-600", "paired")


def test_the_figures_are_the_textbooks() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0])
    figure = report.mean(values)
    assert (3.0, 4) == (figure.mean, figure.n)
    assert figure.high - 3.0 == pytest.approx(3.182446 * values.std(ddof=1) / 2, rel=1e-6)
    wilson = report.share(np.array([1.0] * 8 + [0.0] * 2))
    assert (80.0, pytest.approx(49.016, abs=0.01), pytest.approx(94.332, abs=0.01)) == (
        wilson.mean,
        wilson.low,
        wilson.high,
    )
    half = report.ratio(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    assert (0.5, 0.5, 0.5) == pytest.approx((half.mean, half.low, half.high))


def test_aims_are_told_with_what_was_reached() -> None:
    def runs(gain: float, **more: Any) -> dict[int, dict[str, Any]]:
        return {seed: {"gain": gain + 0.001 * seed, "seconds": 0.1, **more} for seed in range(5)}

    ours = {"shipped": 0.1, "ships": True, "favourite": 0.1, "low": 0.0, "high": 0.2}
    found = {"mipro": runs(0.05), "ours": runs(0.1, **ours), "truth": runs(0.0, best=0.12, floor=0.11, home=0.5)}
    result = report.Result("default-2-light", 1200, found, range(5))
    assert 5.0 == pytest.approx(report.mean(result.ahead("ours", "mipro")).mean)
    assert 0.018 / 0.068 == pytest.approx(report.regrets(result, "mipro").mean)
    text = "\n".join(report.worlds([result]))
    assert "- holds: above MIPROv2 at equal calls" in text and "1 of 1 cells" in text
    assert "- not measured: at half the calls" in text
    found["mipro"] = runs(0.11)
    assert "- SHORT: above MIPROv2 at equal calls" in "\n".join(
        report.worlds([report.Result("default-2-light", 1, found, range(5))])
    )


recorded = pytest.mark.skipif(not tables.available(), reason="no recorded outcomes: set VITRIFY_DATA")


@recorded
def test_the_rag_grid_is_whole_and_the_other_tables_are_lists() -> None:
    grid = tables.Recorded("rag", 0)
    assert ([3, 3, 3], None, 107) == ([s.levels for s in grid.space.slots], grid.space.feasible, grid.examples)
    for point in grid.space.points():
        assert grid.score(point, range(107)).mean() == pytest.approx(grid.truth(point))
    assert grid.truth(grid.floor()) == grid.truth(grid.best())
    for name in tables.TESTED:
        table = tables.Recorded(name, 0)
        assert all(np.isfinite(table.truth(point)) for point in table.space.feasible)
        assert table.home in table.space.feasible


@recorded
def test_a_baseline_is_drawn_by_the_seed_alone_and_oirl_hides_its_test() -> None:
    assert len({tables.Recorded("gsm8k", seed).home for seed in range(40)}) > 30
    assert tables.Recorded("gsm8k", 7).home == tables.Recorded("gsm8k", 7).home
    table = tables.Recorded("oirl", 1)
    cells = tables.load("oirl")[0]
    for point in [(0,), (9,)]:
        shown = table.score(point, range(300)).sum()
        assert cells[point[0]].sum() == pytest.approx(shown + 700 * table.truth(point))


@recorded
@pytest.mark.parametrize("who", ["mipro", "paired", "ours"])
def test_recorded_tables_can_be_searched(who: str) -> None:
    for name in ("copa-600", "rag-600"):
        cell = command.Cell(name)
        found = rivals.run(who, cell.task(3), cell.budget, 3, cell.auto)
        assert found["calls"] <= 600
        assert np.isfinite(found["gain"])


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {seed: {"gain": 0.1 + 0.01 * seed} for seed in range(3)}
    result = report.Result(SMALL, 650, {"ours": runs, "mipro": runs}, range(3))
    assert report.plot([result], tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    assert not report.plot([], tmp_path / "none.svg")

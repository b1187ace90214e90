"""Report: tables with a 95 % interval on every figure, what issue 4 asks for beside what was reached, and a plot.

Gains are in points, a hundredth of the score, over the baseline and by their truth. Differences are paired by seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

Floats = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 2_000
"""Of the bootstrap of a ratio."""

WORSE = 0.005
"""A true loss that counts as worse: half a point."""


@dataclass(frozen=True)
class Figure:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def shown(self, form: str = "+.1f") -> str:
        """Return it for a table."""
        if not self.n:
            return ""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]" if self.n > 1 else f"{self.mean:{form}}"


NOTHING = Figure(np.nan, np.nan, np.nan, 0)


def mean(values: Floats) -> Figure:
    """Return a mean with Student's interval."""
    n = len(values)
    if n < 2:
        return Figure(float(values[0]), np.nan, np.nan, 1) if n else NOTHING
    width = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)
    return Figure(float(values.mean()), float(values.mean()) - width, float(values.mean()) + width, n)


def share(holds: Floats) -> Figure:
    """Return a percentage with Wilson's interval."""
    n = len(holds)
    if not n:
        return NOTHING
    p, z = float(holds.mean()), 1.959964
    centre, width = (p + z * z / 2 / n), z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    scale = 100 / (1 + z * z / n)
    return Figure(100 * p, max(0.0, scale * (centre - width)), min(100.0, scale * (centre + width)), n)


def ratio(above: Floats, below: Floats) -> Figure:
    """Return a ratio of means with the percentile interval of a bootstrap over pairs."""
    n = len(above)
    if n < 2 or below.mean() <= 0:
        return NOTHING
    draws = np.random.default_rng(4).integers(n, size=(RESAMPLES, n))
    found = above[draws].mean(axis=1) / np.maximum(below[draws].mean(axis=1), 1e-12)
    low, high = np.quantile(found, [0.025, 0.975])
    return Figure(float(above.mean() / below.mean()), float(low), float(high), n)


class Result:
    """One cell's outcomes.

    Args:
        name: The cell's.
        budget: Metric calls.
        found: Outcomes by who and seed.
        seeds: Those that count.
    """

    def __init__(
        self, name: str, budget: int, found: dict[str, dict[int, dict[str, Any]]], seeds: Sequence[int]
    ) -> None:
        self.name, self.budget = name, budget
        self.found = {who: {s: runs[s] for s in seeds if s in runs} for who, runs in found.items()}

    @property
    def kind(self) -> str:
        """The kind of world, or the table."""
        return self.name.partition("-")[0]

    @property
    def predictors(self) -> int:
        """How many predictors the world has."""
        return int(self.name.split("-")[1])

    @property
    def effort(self) -> str:
        """Whose budget the world is searched with."""
        return self.name.split("-")[-1]

    def values(self, who: str, field: str, beside: str | None = None) -> Floats:
        """Return a field of somebody's outcomes by ascending seed; `beside`: of the seeds that it has as well."""
        runs, other = self.found.get(who, {}), self.found.get(beside or who, {})
        return np.array([float(runs[seed][field]) for seed in sorted(runs) if seed in other])

    def gain(self, who: str, field: str = "gain") -> Floats:
        """Return true gains, in points."""
        return 100 * self.values(who, field)

    def ahead(self, who: str, whom: str, field: str = "gain") -> Floats:
        """Return by how many points somebody is above somebody else, seed by seed."""
        return 100 * (self.values(who, field, whom) - self.values(whom, "gain", who))

    def regret(self, who: str, beside: str | None = None, field: str = "gain") -> Floats:
        """Return by how many points a choice is below the best one."""
        best = self.found.get("truth", {})
        runs, other = self.found.get(who, {}), self.found.get(beside or who, {})
        return np.array([100 * (best[s]["best"] - runs[s][field]) for s in sorted(runs) if s in other and s in best])

    def held(self) -> Floats:
        """Return whether the interval holds the truth of the favourite, which it is of; a run without one has none."""
        runs = [run for _, run in sorted(self.found.get("ours", {}).items()) if run["favourite"] is not None]
        return np.array([float(run["low"] <= run["favourite"] <= run["high"]) for run in runs])

    def worse(self) -> Floats:
        """Return whether what shipped is worse than the baseline."""
        return (self.values("ours", "shipped") < -WORSE).astype(np.float64)


def row(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cells) + " |"


def head(*names: str) -> list[str]:
    """Return the head of a table."""
    return [row(names), row(["---"] * len(names))]


def worlds(results: Sequence[Result]) -> list[str]:
    """Return the tables of worlds and what they say of issue 4's aims."""
    rivals = ("tpe", "random", "bootstrap", "halving", "paired")
    said = [
        "True gain in points, and how far our unguarded choice is above each rival's with the same calls, and above",
        "MIPROv2's with 1/2, 1/4 and 1/8 of them. World: kind, predictors, budget.",
        "",
        *head("world", "calls", "MIPROv2", "ours", "guarded", "- MIPROv2", "guarded - MIPROv2", "at 1/2", "at 1/4",
              "at 1/8", *(f"- {who}" for who in rivals)),
    ]  # fmt: skip
    for result in results:
        shares = [mean(result.ahead(f"ours{share}", "mipro")).shown() for share in ("/2", "/4", "/8")]
        said.append(row([
            result.name, str(result.budget), mean(result.gain("mipro")).shown(".1f"),
            mean(result.gain("ours")).shown(".1f"), mean(result.gain("ours", "shipped")).shown(".1f"),
            mean(result.ahead("ours", "mipro")).shown(),
            mean(result.ahead("ours", "mipro", "shipped")).shown(), *shares,
            *(mean(result.ahead("ours", who)).shown() for who in rivals),
        ]))  # fmt: skip
    said += [
        "",
        "Regret to the best point, ours over MIPROv2's and over paired halving's; the floor is the regret of an oracle",
        "that knows every main effect, over MIPROv2's. Of our runs: the interval holds the truth, the guard ships,",
        "what it ships is worse by more than half a point; CPU seconds, ours and MIPROv2's.",
        "",
        *head("world", "ours / MIPROv2", "ours / paired", "floor", "holds, %", "ships, %", "worse, %", "s",
              "s MIPROv2", "n"),
    ]  # fmt: skip
    for result in results:
        floor = 100 * (result.values("truth", "best", "mipro") - result.values("truth", "floor", "mipro"))
        said.append(row([
            result.name, regrets(result, "mipro").shown(".2f"), regrets(result, "paired").shown(".2f"),
            ratio(floor, result.regret("mipro")).shown(".2f"), share(result.held()).shown(".0f"),
            share(result.values("ours", "ships")).shown(".0f"), share(result.worse()).shown(".1f"),
            f"{np.mean(result.values('ours', 'seconds')):.2f}" if result.found.get("ours") else "",
            f"{np.mean(result.values('mipro', 'seconds')):.2f}" if result.found.get("mipro") else "",
            str(len(result.found.get("ours", {}))),
        ]))  # fmt: skip
    return [*said, "", *aims(results)]


def regrets(result: Result, whom: str) -> Figure:
    """Return the ratio of our mean regret to somebody's."""
    return ratio(result.regret("ours", whom), result.regret(whom, "ours"))


def aims(results: Sequence[Result]) -> list[str]:
    """Return issue 4's aims for worlds, each with what was reached."""
    said = ["What issue 4 asks of worlds:", ""]

    def tell(aim: str, holds: bool | None, text: str) -> None:
        said.append(f"- {'not measured' if holds is None else 'holds' if holds else 'SHORT'}: {aim}. {text}".rstrip())

    main = [r for r in results if r.kind in ("default", "small", "interaction", "coupled") and r.found.get("mipro")]
    figures = [(r, mean(r.ahead("ours", "mipro"))) for r in main]
    short = [f"{r.name} {f.shown()}" for r, f in figures if not f.low > 0]
    tell("above MIPROv2 at equal calls, clear of zero in at least 90 % of the cells",
         1 - len(short) / len(figures) >= 0.9 if figures else None,
         f"{len(figures) - len(short)} of {len(figures)} cells; not: {'; '.join(short) or 'none'}")  # fmt: skip
    half = [(r, mean(r.ahead("ours/2", "mipro"))) for r in results if r.found.get("ours/2") and r.found.get("mipro")]
    short = [f"{r.name} {f.shown()}" for r, f in half if not f.low > -0.5]
    tell("at half the calls the lower bound above -0.5 in every cell", not short if half else None,
         f"Short: {'; '.join(short) or 'none'}")  # fmt: skip
    over = float(np.mean([f.mean for r, f in half if r.kind != "null"] or [np.nan]))
    tell("at half the calls the mean over cells above zero", over > 0 if half else None, f"{over:+.2f}")
    wide = [r for r in results if r.effort == "medium" and r.predictors >= 2]
    quarter = [(r, mean(r.ahead("ours/4", "mipro"))) for r in wide if r.found.get("ours/4") and r.found.get("mipro")]
    short = [f"{r.name} {f.shown()}" for r, f in quarter if not f.mean >= -0.5]
    tell("at a quarter a mean of at least -0.5 in medium cells with two or more predictors",
         not short if quarter else None, f"Short: {'; '.join(short) or 'none'}")  # fmt: skip
    four = [(r, f) for r, f in quarter if r.predictors == 4 and r.kind != "null"]
    short = [f"{r.name} {f.shown()}" for r, f in four if not f.low > 0]
    tell("at a quarter above zero in medium cells with four", not short if four else None,
         f"Short: {'; '.join(short) or 'none'}")  # fmt: skip
    eighth = [
        (r, mean(r.ahead("ours/8", "mipro")))
        for r in results
        if r.predictors == 4 and r.kind != "null" and r.found.get("ours/8") and r.found.get("mipro")
    ]
    tell("at an eighth parity with four predictors (an aim)",
         float(np.mean([f.mean for _, f in eighth])) >= 0 if eighth else None,
         "; ".join(f"{r.name} {f.shown()}" for r, f in eighth))  # fmt: skip
    for effort, most, aim in (("medium", 0.45, 0.35), ("light", 0.65, 0.5)):
        found = [r for r in results if r.effort == effort and r.kind != "null" and r.found.get("mipro")]
        ratios = [(r, regrets(r, "mipro")) for r in found]
        middle = float(np.mean([f.mean for _, f in ratios])) if ratios else np.nan
        short = [f"{r.name} {f.shown('.2f')}" for r, f in ratios if f.mean > most]
        tell(f"ratio of mean regrets at most {most} over {effort} cells, aim {aim}", middle <= most if ratios else None,
             f"Mean over cells {middle:.2f}; cells above: {'; '.join(short) or 'none'}")  # fmt: skip
    coupled = [(r, mean(-r.ahead("ours", "tpe"))) for r in results if r.kind == "coupled" and r.found.get("tpe")]
    short = [f"{r.name} {f.shown()}" for r, f in coupled if not f.high < 0.5]
    tell("coupled worlds: the upper bound of TPE - ours under 0.5", not short if coupled else None,
         f"Short: {'; '.join(short) or 'none'}")  # fmt: skip
    null = pooled([r.values("ours", "ships") for r in results if r.kind == "null"])
    tell("null worlds: the guard ships in at most 5 %", null.mean <= 5 if null.n else None, _of(null))
    worse = [(r, share(r.worse())) for r in results if r.found.get("ours")]
    every = pooled([r.worse() for r in results])
    tell("worse after the guard: at most 1 % over all cells", every.mean <= 1 if every.n else None, _of(every))
    short = [f"{r.name} {f.mean:.1f} %" for r, f in worse if f.mean > 2.5]
    tell("worse after the guard: at most 2.5 % in any cell", not short if worse else None,
         f"Short: {'; '.join(short) or 'none'}")  # fmt: skip
    holds = pooled([r.held() for r in results])
    tell("the interval's pooled coverage 94 to 96 %", 94 <= holds.mean <= 96 if holds.n else None, _of(holds))
    short = [
        f"{r.name} {share(r.held()).mean:.0f} %"
        for r in results
        if len(r.held()) and not 90 <= share(r.held()).mean <= 99
    ]
    tell("the interval's coverage 90 to 99 % in every cell", not short if holds.n else None,
         f"Short: {'; '.join(short) or 'none'}")  # fmt: skip
    return said


def pooled(values: Sequence[Floats]) -> Figure:
    """Return the percentage over all cells' runs."""
    return share(np.concatenate([np.zeros(0), *values]))


def _of(figure: Figure) -> str:
    return f"{figure.shown('.2f')} % of {figure.n} runs" if figure.n else ""


def tables(results: Sequence[Result]) -> list[str]:
    """Return the table of recorded outcomes and what it says of issue 4's aims."""
    everybody = ("mipro", "tpe", "random", "bootstrap", "halving", "paired", "ours")
    said = [
        "Regret in points to the best `test` of a table (of OIRL to the best on the columns not shown, of the RAG grid",
        "on all), before the guard; of the row that is best on every column shown; how far ours is above others.",
        "",
        *head("table", "calls", *everybody, "ours, guarded", "best on all columns", "- mipro", "- tpe", "- random",
              "- halving", "- paired", "ships, %", "n"),
    ]  # fmt: skip
    for result in results:
        said.append(row([
            result.kind, str(result.budget), *(mean(result.regret(who)).shown(".2f") for who in everybody),
            mean(result.regret("ours", field="shipped")).shown(".2f"),
            mean(result.regret("truth", field="floor")).shown(".2f"),
            *(mean(result.ahead("ours", who)).shown("+.2f") for who in ("mipro", "tpe", "random", "halving", "paired")),
            share(result.values("ours", "ships")).shown(".0f"), str(len(result.found.get("ours", {}))),
        ]))  # fmt: skip
    said += ["", "What issue 4 asks of recorded outcomes:", ""]
    for who in ("mipro", "tpe", "random", "halving"):
        asked = [r for r in results if r.kind in ("gsm8k", "subj") and r.budget >= 1200 and r.found.get(who)]
        figures = [(r, mean(r.ahead("ours", who))) for r in asked]
        text = "; ".join(f"{r.name} {f.shown('+.2f')}" for r, f in figures)
        verdict = "not measured" if not figures else "holds" if all(f.mean > 0 for _, f in figures) else "SHORT"
        said.append(f"- {verdict}: above {who} on GSM8K and Subj at 1,200 and 2,400 calls. {text}")
    cells = [mean(r.ahead("ours", "paired")).mean for r in results if r.found.get("paired") and r.found.get("ours")]
    if cells:
        over = float(np.mean(cells))
        verdict = "holds" if over >= -0.3 else "SHORT"
        said.append(f"- {verdict}: against paired halving at least -0.3 on the mean over all tables. {over:+.2f}")
    grid = [mean(r.ahead("ours", "paired")).shown("+.2f") for r in results if r.kind == "rag" and r.found.get("paired")]
    said.append(f"- against paired halving on the RAG grid: {'; '.join(grid) or 'not measured'}")
    return said


def compiles(lines: Any) -> list[str]:
    """Return the table of real compiles: mean and range over seeds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, outcome in lines.known.items():
        if key.who.startswith("compile "):
            found.setdefault((key.cell, key.who.removeprefix("compile ")), []).append(outcome)
    fields = ("baseline", "compiled", "metric_calls", "lm_calls", "tokens", "seconds")
    said = [
        "A real compile on the embedded model, an offline learner: mean (range) over seeds; the same rows for both,",
        "scores in % of a test that neither saw; calls and tokens at metric and model, those on the test left out.",
        "",
        *head("task", "compiler", *(field.replace("_", " ") for field in fields), "n"),
    ]
    for (task, who), runs in sorted(found.items()):
        shown = []
        for field in fields:
            values = [100 * r[field] if field in ("baseline", "compiled") else r[field] for r in runs]
            form = ",.0f" if field in ("metric_calls", "lm_calls", "tokens") else ".1f"
            shown.append(f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})")
        said.append(row([task, who, *shown, str(len(runs))]))
    return said if found else []


def plot(results: Sequence[Result], path: Path) -> bool:
    """Draw how far ours is above MIPROv2 by world and share of the calls; say whether there was something to draw.

    Left out, with False, where matplotlib is missing: it comes with the extra `dev`.
    """
    results = [r for r in results if r.found.get("mipro") and r.found.get("ours") and r.kind != "null"]
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return False
    if not results:
        return False
    rcParams["svg.hashsalt"] = "vitrify"
    canvas = Canvas(figsize=(8, 1.2 + 0.28 * len(results)), layout="constrained")
    axes = canvas.subplots()
    for shift, (who, label) in enumerate((("ours", "all"), ("ours/2", "1/2"), ("ours/4", "1/4"), ("ours/8", "1/8"))):
        figures = [mean(r.ahead(who, "mipro")) if r.found.get(who) else NOTHING for r in results]
        middle = np.array([f.mean for f in figures])
        ends = np.array([[f.mean - f.low, f.high - f.mean] for f in figures]).T
        places = np.arange(len(results)) + 0.18 * (shift - 1.5)
        axes.errorbar(middle, places, xerr=np.nan_to_num(ends), fmt="o", markersize=3, linewidth=1, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(results)), [r.name for r in results], fontsize=7)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_xlabel("true gain above dspy.MIPROv2's, points, 95 % intervals")
    axes.legend(title="share of its calls", fontsize=7)
    canvas.savefig(path, metadata={"Date": None})
    return True

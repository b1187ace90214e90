"""compile() as users call it: the compiler, with the strategy that `options` names."""

from pathlib import Path
from typing import Any

from .compiler.budget import Budget
from .compiler.compile import compile as run_compile
from .compiler.options import Options
from .compiler.strategy import Strategy
from .programs.artifact import Artifact
from .signatures.errors import RequestError


def compile(
    program: Any,
    data: Any,
    metric: Any,
    *,
    lm: Any,
    budget: Budget | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    options: Options | None = None,
) -> Artifact:
    """Compile a program: search instructions and demonstrations for every predictor, and return what ships.

    Args:
        program: A DSPy module; it is left as it is.
        data: A path (CSV, JSONL, JSON, Parquet, a dataset's folder), a Hugging Face name or dataset, or a list of
            `dspy.Example` or of dictionaries. Columns that `forward` takes are inputs, the others are labels.
        metric: A DSPy metric, unchanged, or a name: `exact:field`, `f1:field`, `numeric:field`, `contains:field`.
        lm: A name that `dspy.LM` accepts, a `dspy.LM`, or `"embedded"`.
        budget: What may be spent; by default what the effort takes.
        seed: Same inputs and seed on a deterministic model give the same bytes; 0 is a seed.
        run_dir: Where the run keeps what it paid for; by default under `.vitrify/runs`.
        options: Everything else.

    Raises:
        RequestError: If the request is wrong; before money is spent where that can be known.
        WorkError: If the work failed; what was paid is kept in the run directory.
    """
    chosen = options or Options()
    return run_compile(
        program,
        data,
        metric,
        lm=lm,
        strategy=resolve_strategy(chosen.strategy),
        budget=budget,
        seed=seed,
        run_dir=run_dir,
        options=chosen,
    )


def resolve_strategy(strategy: Any) -> Strategy:
    """Return the strategy that a name or an object stands for."""
    if strategy in ("auto", "grounded"):
        from .teleprompters.grounded import Grounded

        return Grounded()
    if isinstance(strategy, str) or not all(
        hasattr(strategy, name) for name in ("name", "bootstrap", "demonstrations", "instructions")
    ):
        raise RequestError(
            f"`strategy` is auto, grounded or an object with bootstrap, demonstrations and instructions, got "
            f"{strategy!r:.80}."
        )
    chosen: Strategy = strategy
    return chosen

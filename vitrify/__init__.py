"""vitrify: a compiler for language-model pipelines.

Declare a pipeline as DSPy modules, name a dataset and a metric, and get one JSON file: the frozen program, with the
best instruction and demonstrations for every predictor and honest evidence of what that gained.

    artifact = vitrify.compile(program, "tickets.jsonl", "exact:team", lm="openai/gpt-4o-mini")
    artifact.save("desk.json")
    desk = vitrify.load("desk.json")

Names are resolved when they are used: `import vitrify; vitrify.load(...)` loads neither DSPy nor Optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler import stock as metrics
    from .compiler.additive_sampler import AdditiveSampler
    from .compiler.budget import Budget
    from .compiler.metric import Score
    from .compiler.options import Options
    from .front import compile
    from .programs.artifact import Artifact
    from .programs.bind import bind
    from .programs.candidate import Candidate
    from .programs.effects import cached, once
    from .programs.hooks import LMCall
    from .programs.program import lower_program
    from .programs.runtime import load
    from .programs.telemetry import opentelemetry_hook
    from .signatures.errors import RequestError, VitrifyError, WorkError

__version__ = "0.1.0"

_HOME = {
    "AdditiveSampler": "compiler.additive_sampler",
    "Artifact": "programs.artifact",
    "Budget": "compiler.budget",
    "Candidate": "programs.candidate",
    "LMCall": "programs.hooks",
    "Options": "compiler.options",
    "RequestError": "signatures.errors",
    "Score": "compiler.metric",
    "VitrifyError": "signatures.errors",
    "WorkError": "signatures.errors",
    "bind": "programs.bind",
    "cached": "programs.effects",
    "compile": "front",
    "load": "programs.runtime",
    "lower_program": "programs.program",
    "metrics": "compiler.stock",
    "once": "programs.effects",
    "opentelemetry_hook": "programs.telemetry",
}

__all__ = [
    "AdditiveSampler",
    "Artifact",
    "Budget",
    "Candidate",
    "LMCall",
    "Options",
    "RequestError",
    "Score",
    "VitrifyError",
    "WorkError",
    "bind",
    "cached",
    "compile",
    "load",
    "lower_program",
    "metrics",
    "once",
    "opentelemetry_hook",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'vitrify' has no attribute {name!r}")
    try:
        module = import_module(f".{_HOME[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name in ("dspy", "optuna", "numpy", "scipy", "datasets", "diskcache", "jinja2"):
            raise ModuleNotFoundError(
                f"vitrify.{name} needs {error.name}, which isn't installed: `compiling needs vitrify[compile]`; "
                "run `pip install 'vitrify[compile]'`.",
                name=error.name,
            ) from error
        raise
    value = module if name == "metrics" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

"""A dspy.Module as data: its predictors by path, found without running it."""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..signatures.canonical import JsonValue, NotCanonical, canonical_json
from ..signatures.errors import ProgramError
from ..signatures.lower import lower
from ..signatures.prompt import Format
from ..signatures.signature import SignatureSpec
from ..signatures.types import Unsupported
from .candidate import DECODING as DECODING
from .candidate import Candidate, PredictorParams, demo_of
from .rules import signatures_problem

if TYPE_CHECKING:
    import dspy

ATOMIC = frozenset({str, int, float, bool, bytes, type(None)})
"""What can't hold a predictor: passed over in the million passages that a program may hold in a list."""


@dataclass(frozen=True)
class Located:
    """One predictor object and where it was found.

    Attributes:
        path: The first path in the order of declaration: `triage`, `steps[0].predict`, `tools['a'].extract`.
        aliases: The other paths that lead to the same object.
        predictor: The `dspy.Predict` itself.
        frozen: Whether it lies in a sub-module marked `_compiled`, which is bound but not searched.
    """

    path: str
    aliases: tuple[str, ...]
    predictor: "dspy.Predict"
    frozen: bool


@dataclass(frozen=True)
class PredictorSpec:
    """One predictor of a program, as data.

    Attributes:
        path: Where the predictor is.
        aliases: Other paths to the same object.
        signature: Its lowered signature; None where it lies outside the type grammar.
        reason: Why DSPy itself runs this predictor, or None where a plan does.
        level0: What the user wrote: instruction, demonstrations, format, decoding.
        tunable: Whether the search may change it.
        ambient: The format of the adapter in force when it was lowered; in another one's scope DSPy itself runs it.
            None where that adapter is none a plan can stand in for.
    """

    path: str
    aliases: tuple[str, ...]
    signature: SignatureSpec | None
    reason: str | None
    level0: PredictorParams
    tunable: bool
    ambient: Format | None = "chat"


@dataclass(frozen=True)
class InputSpec:
    """One input of the program's `forward`."""

    name: str
    required: bool


@dataclass(frozen=True)
class ProgramSpec:
    """A program as data.

    Attributes:
        name: The class's name.
        import_path: `module:Class`, as it can be imported again; None for a class without one.
        source_sha256: Hash of the class's source text; None where there is none.
        inputs: What `forward` takes.
        predictors: Every predictor, in the order of declaration.
    """

    name: str
    import_path: str | None
    source_sha256: str | None
    inputs: tuple[InputSpec, ...]
    predictors: tuple[PredictorSpec, ...]

    @property
    def baseline(self) -> Candidate:
        """The candidate of level 0: exactly what the user wrote."""
        return Candidate(MappingProxyType({spec.path: spec.level0 for spec in self.predictors}))

    def predictor(self, path: str) -> PredictorSpec:
        """Return the predictor at `path`, or raise ProgramError."""
        for spec in self.predictors:
            if spec.path == path:
                return spec
        known = ", ".join(spec.path for spec in self.predictors)
        raise ProgramError(
            f"`a spec and its program have the same predictors`: {self.name} has no {path}, only {known}; "
            "lower the program again after changing it."
        )


def walk(program: "dspy.Module") -> tuple[Located, ...]:
    """Return every predictor of `program` in the order of declaration, without running it."""
    import dspy

    first: dict[int, tuple[str, bool, dspy.Predict]] = {}
    aliases: dict[int, list[str]] = {}
    for path, value, frozen in _visit(program, "", False, frozenset()):
        if id(value) in first:
            known, was_frozen, predictor = first[id(value)]
            aliases[id(value)].append(path)
            # Reachable from outside the compiled part as well: then it may be searched.
            first[id(value)] = (known, was_frozen and frozen, predictor)
        else:
            first[id(value)] = (path, frozen, value)
            aliases[id(value)] = []
    return tuple(Located(path, tuple(aliases[key]), value, frozen) for key, (path, frozen, value) in first.items())


def _visit(value: Any, path: str, frozen: bool, above: frozenset[int]) -> Iterator[tuple[str, Any, bool]]:
    import dspy

    if id(value) in above:  # a cycle
        return
    if isinstance(value, dspy.Predict):
        yield path or "self", value, frozen
    if isinstance(value, dspy.Module):
        # The root's own mark says that DSPy compiled it before; only sub-modules are protected by it.
        inside = frozen or (path != "" and bool(getattr(value, "_compiled", False)))
        for name, item in vars(value).items():
            if name not in ("history", "callbacks"):
                yield from _visit(item, f"{path}.{name}" if path else name, inside, above | {id(value)})
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if type(item) not in ATOMIC:
                yield from _visit(item, f"{path}[{index}]", frozen, above | {id(value)})
    elif isinstance(value, dict):
        # repr keeps d[1] and d["1"] apart.
        for key, item in value.items():
            if type(item) not in ATOMIC:
                yield from _visit(item, f"{path}[{key!r}]", frozen, above | {id(value)})


def lower_program(program: "dspy.Module", *, adapter: Any = None) -> ProgramSpec:
    """Return `program` as data.

    Args:
        program: A DSPy module; it isn't run and isn't changed.
        adapter: The adapter in force (`dspy.settings.adapter`), which is level 0; None is DSPy's own default.

    Raises:
        ProgramError: If the value is no module, or holds no predictor.
    """
    import dspy

    if not isinstance(program, dspy.Module):
        hint = "; call it to make an instance" if isinstance(program, type) else ""
        raise ProgramError(f"`program` must be a dspy.Module, got {type(program).__name__} {program!r:.80}{hint}.")
    located = walk(program)
    if not located:
        raise ProgramError(
            f"{type(program).__name__} has no predictors: `a program holds at least one dspy.Predict as an attribute` "
            "(also nested, in lists or dicts); make them in __init__, not in forward()."
        )
    level, reason = adapter_level(adapter)
    predictors = tuple(_lower_predictor(item, level, reason) for item in located)
    problem = signatures_problem([_as_json(item.signature) for item in predictors if item.signature is not None])
    if problem:
        # Said now, and not by a loader that refuses what a compile was paid for.
        raise ProgramError(f"{type(program).__name__} can't be written to a file: `{problem}`; use simpler types.")
    return ProgramSpec(
        name=type(program).__name__,
        import_path=_import_path(type(program)),
        source_sha256=source_sha256(type(program)),
        inputs=_inputs(program),
        predictors=predictors,
    )


def _as_json(signature: SignatureSpec) -> dict[str, JsonValue]:
    data = signature.to_json()
    assert isinstance(data, dict)
    return data


def adapter_level(adapter: Any) -> tuple[Format, str | None]:
    """Return the format of level 0 and, where plans can't stand in for the adapter, the reason."""
    import dspy

    if adapter is None:
        return "chat", None
    defaults: dict[type, Format] = {dspy.ChatAdapter: "chat", dspy.JSONAdapter: "json"}
    level = defaults.get(type(adapter))
    if level is None:
        return "chat", f"the adapter is {type(adapter).__name__}, neither ChatAdapter nor JSONAdapter"
    if vars(adapter) != vars(type(adapter)()):
        return level, f"the {type(adapter).__name__} has options of its own"
    return level, None


def _lower_predictor(located: Located, level: Format, adapter_reason: str | None) -> PredictorSpec:
    from .planned import Bound

    predictor = located.predictor
    # What was bound before keeps the format it was bound with.
    chosen: Format = predictor.format if isinstance(predictor, Bound) else level
    lowered = lower(predictor.signature)
    reason = adapter_reason or overridden(predictor)
    spec = None if isinstance(lowered, Unsupported) else lowered
    if isinstance(lowered, Unsupported):
        reason = reason or lowered.reason
    if predictor.fields:
        reason = reason or "it carries decision criteria"
    demos: tuple[Mapping[str, JsonValue], ...] = ()
    if spec is not None and reason is None:
        try:
            demos = tuple(demo_of(spec, dict(demo)) for demo in predictor.demos)
            canonical_json([dict(demo) for demo in demos])
        except (NotCanonical, TypeError, ValueError) as error:
            demos, reason = (), f"a demonstration isn't JSON ({error})"
    return PredictorSpec(
        path=located.path,
        aliases=located.aliases,
        signature=spec,
        reason=reason,
        level0=PredictorParams(
            instruction=predictor.signature.instructions,
            demos=demos,
            format=chosen,
            decoding=MappingProxyType({k: v for k, v in sorted(predictor.config.items()) if _is_decoding(k, v)}),
        ),
        tunable=reason is None and not located.frozen,
        ambient=None if adapter_reason is not None else level,
    )


def _is_decoding(name: str, value: Any) -> bool:
    """Say whether an item of a predictor's config is a sampling parameter that can be written to a file."""
    if name not in DECODING:
        return False
    try:
        canonical_json(value)
    except (NotCanonical, TypeError, ValueError):
        return False
    return True


def overridden(predictor: "dspy.Predict") -> str | None:
    """Return why a predictor's class must be left alone, or None."""
    import dspy

    from .planned import ATTRIBUTES, written_class

    cls = written_class(type(predictor))
    for name in ("forward", "aforward", "__call__", "acall", "_forward_preprocess", "_forward_postprocess"):
        if name in vars(predictor) or getattr(cls, name) is not getattr(dspy.Predict, name):
            return f"{cls.__name__} overrides {name}()"
    taken = sorted(ATTRIBUTES & vars(predictor).keys()) if cls is type(predictor) else []
    return f"{cls.__name__} has an attribute `{taken[0]}` of its own" if taken else None


def _inputs(program: "dspy.Module") -> tuple[InputSpec, ...]:
    """Return what `forward` takes; `**kwargs` alone means: what the first predictor takes."""
    import dspy

    forward = getattr(type(program), "forward", None) or getattr(type(program), "aforward", None)
    if forward is None:
        raise ProgramError(
            f"{type(program).__name__} has neither: `a module defines forward() or aforward()`; define the one to call."
        )
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if named:
        return tuple(InputSpec(p.name, p.default is p.empty) for p in named)
    predictor = program if isinstance(program, dspy.Predict) else walk(program)[0].predictor
    wrapped = getattr(program, "signature", None)
    fields = wrapped.input_fields if wrapped is not None else predictor.signature.input_fields
    return tuple(InputSpec(name, info.is_required()) for name, info in fields.items())


def _import_path(cls: type) -> str | None:
    """Return `module:Class`, or `file.py:Class` for a class out of a file; never a folder, which is a machine's own."""
    if "<locals>" in cls.__qualname__:
        return None
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or cls.__module__.startswith("_vitrify_"):
        file = getattr(module, "__file__", None)
        return None if file is None else f"{PurePath(file).name}:{cls.__qualname__}"
    return f"{cls.__module__}:{cls.__qualname__}"


def source_sha256(cls: type) -> str | None:
    """Return the sha256 of a class's source text, or None where Python can't find it."""
    try:
        return hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()
    except (OSError, TypeError):
        return None

"""Demonstrations from the program's own accepted traces, and from labels where they say everything.

The idea is BootstrapFewShot's (Khattab et al., DSPy, ICLR 2024): run the program on training rows, keep the traces that
the metric accepts, and show every predictor what it did there, intermediate fields included.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from ..compiler.data import Example
from ..compiler.outcome import Outcome, Scored
from ..compiler.rng import generator
from ..compiler.strategy import Accepted, DemoLevel, Needs, Provenance, View
from ..programs.candidate import Candidate, Demo, demo_of, fits, is_text
from ..programs.program import PredictorSpec
from ..signatures.canonical import NotCanonical, canonical_json
from ..signatures.signature import SignatureSpec
from ..signatures.values import jsonable

NOT_SUPPLIED = "Not supplied for this particular example"
"""What a prompt shows for a missing field; a model that copies it has written nothing."""

Owned = tuple[Demo, int]
"""A demonstration and the row it comes from."""


def bootstrap(view: View) -> tuple[Accepted, ...]:
    """Return the training traces that the metric accepts.

    Two rounds: the program as it stands; then, on a row that failed, the program with labelled demonstrations of other
    rows, for every predictor whose fields the labels supply in full. A row's second round waits for no other row.
    """
    # Each half of the rows is answered with demonstrations from the other half: never of the very row.
    halves = (view.train[::2], view.train[1::2])
    teachers = [_with_labels(view, shown) for shown in reversed(halves)]
    second = {
        example.id: teacher
        for rows, teacher in zip(halves, teachers, strict=True)
        for example in rows
        if teacher.id != view.start.id
    }

    def again(example: Example, outcome: Outcome) -> Candidate | None:
        return second.get(example.id) if _failed(view.needs, outcome) else None

    told = view.runner.follow(view.start, view.train, again, traced=True, teacher=True)
    threshold = _threshold(view.needs, [outcome.score for outcome, _ in told])
    accepted = _accept(view, view.train, [outcome for outcome, _ in told], threshold)
    kept = {item.example.id for item in accepted}
    tried = [(row, other) for row, (_, other) in zip(view.train, told, strict=True) if other is not None]
    tried = [(row, other) for row, other in tried if row.id not in kept]
    accepted += _accept(view, [row for row, _ in tried], [other for _, other in tried], threshold)
    order = {example.id: index for index, example in enumerate(view.train)}
    return tuple(sorted(accepted, key=lambda item: order[item.example.id]))


def _failed(needs: Needs, outcome: Outcome) -> bool:
    """Say whether a row failed, as far as one outcome can tell: what is accepted depends on all of them."""
    if not isinstance(outcome, Scored):
        return True
    return outcome.score < needs.accept if needs.accept is not None else outcome.score < 1.0


def _threshold(needs: Needs, scores: Sequence[float]) -> float:
    """Return the lowest score that is accepted: 1 where that is the most, else what the best third reaches.

    The best third is taken of the scores above the lowest one, which is nobody's success.
    """
    if needs.accept is not None:
        return needs.accept
    unit = all(0.0 <= score <= 1.0 for score in scores)
    if unit and any(score == 1.0 for score in scores):
        return 1.0
    better = sorted((score for score in scores if score > min(scores)), reverse=True)
    if not better:
        return 1.0
    return better[min(len(better) - 1, max(3, len(scores) // 3))]


def _accept(view: View, examples: Sequence[Example], outcomes: Sequence[Any], threshold: float) -> list[Accepted]:
    accepted = []
    for example, outcome in zip(examples, outcomes, strict=True):
        if not isinstance(outcome, Scored) or outcome.score < threshold:
            continue
        demos: dict[str, tuple[Demo, ...]] = {}
        for path, inputs, outputs in outcome.trace:
            spec = next((p for p in view.spec.predictors if p.path == path), None)
            if spec is None or spec.signature is None:
                continue
            demo = _as_demo(spec.signature, {**inputs, **outputs})
            if demo is not None and not _contradicts(spec.signature, demo, example):
                demos[path] = (*demos.get(path, ()), demo)
        accepted.append(Accepted(example, demos, outcome.score))
    return accepted


def _as_demo(signature: SignatureSpec, values: Mapping[str, Any]) -> Demo | None:
    """Return a demonstration, or None where an output is missing, isn't of its field's type, or isn't JSON."""
    demo = demo_of(signature, values)
    if not any(field.name in demo for field in signature.inputs):
        return None
    for field in signature.outputs:
        if demo.get(field.name) is None or str(demo[field.name]).startswith(NOT_SUPPLIED):
            return None
        if not fits(field, demo[field.name]):
            return None
    return demo if _is_json(demo) else None


def _is_json(demo: Demo) -> bool:
    try:
        canonical_json(dict(demo))
    except NotCanonical:
        return False
    return True


def _contradicts(signature: SignatureSpec, demo: Demo, example: Example) -> bool:
    """Say whether the row has another label for an output that isn't free text; then the trace was right by luck."""
    return any(
        example.labels.get(field.name) is not None
        and fits(field, example.labels[field.name])
        and jsonable(example.labels[field.name]) != demo.get(field.name)
        for field in signature.outputs
        if not is_text(field)
    )


def labelled(spec: PredictorSpec, examples: Sequence[Example]) -> list[Owned]:
    """Return the rows whose columns supply a predictor's inputs and what it is asked for, as its demonstrations.

    Free text besides, such as a chain of thought, may be missing: DSPy says in the prompt that it wasn't supplied.
    """
    if spec.signature is None:
        return []
    found = []
    for example in examples:
        values = {**example.inputs, **example.labels}
        if any(values.get(field.name) is None for field in spec.signature.inputs):
            continue
        given = [field for field in spec.signature.outputs if values.get(field.name) is not None]
        if not given or any(not is_text(field) for field in spec.signature.outputs if field not in given):
            continue
        demo = demo_of(spec.signature, values)
        if all(fits(field, demo[field.name]) for field in given) and _is_json(demo):
            found.append((demo, example.row))
    return found


def _with_labels(view: View, examples: Sequence[Example]) -> Candidate:
    """Return the start with labelled demonstrations for every predictor that the labels can teach."""
    candidate = view.start
    rng = generator(view.seed, "bootstrap.labels")
    for spec in view.spec.predictors:
        pool = labelled(spec, examples) if spec.tunable else []
        if pool:
            chosen = [pool[i] for i in sorted(rng.permutation(len(pool))[: view.needs.max_demos])]
            candidate = candidate.with_params(spec.path, demos=tuple(demo for demo, _ in chosen))
    return candidate


def demonstration_sets(view: View) -> dict[str, tuple[DemoLevel, ...]]:
    """Return demonstration sets for every tunable predictor, of rising size and different make-up.

    Labelled rows where no traces are there yet; else traces and labelled rows in turn.
    """
    return {spec.path: _sets(view, spec) for spec in view.spec.predictors if spec.tunable}


def _sets(view: View, spec: PredictorSpec) -> tuple[DemoLevel, ...]:
    traced: list[Owned] = [(demo, item.example.row) for item in view.accepted for demo in item.demos.get(spec.path, ())]
    from_labels = labelled(spec, view.train)
    pools = [("bootstrap", traced), ("labelled", from_labels)]
    pools = [(method, pool) for method, pool in pools if pool]
    levels: list[DemoLevel] = []
    seen: set[str] = set()
    for index in range(4 * view.needs.demo_sets):
        if len(levels) == view.needs.demo_sets or not pools:
            break
        method, pool = pools[index % len(pools)]
        size = _size(index // len(pools), view.needs.max_demos, _classes(spec, pool))
        rng = generator(view.seed, f"demos.{spec.path}.{index}")
        chosen = _covering(spec, pool, min(size, len(pool)), rng)
        key = canonical_json([dict(demo) for demo, _ in chosen])
        if key not in seen:
            seen.add(key)
            note = f"{len(chosen)} of {len(pool)} " + ("accepted traces" if method == "bootstrap" else "labelled rows")
            levels.append(DemoLevel(*_split(chosen), Provenance(method, note)))
    return tuple(levels)


def _split(chosen: Sequence[Owned]) -> tuple[tuple[Demo, ...], tuple[int, ...]]:
    return tuple(demo for demo, _ in chosen), tuple(row for _, row in chosen)


def _size(index: int, most: int, classes: int) -> int:
    """Return the sizes in turn: the largest, a quarter, half, and one for each class where there are many."""
    sizes = [most, max(1, most // 4), max(1, most // 2)]
    if most < classes <= 6 * most:
        sizes.insert(0, classes)
    return sizes[index % len(sizes)]


def _kind(spec: PredictorSpec, demo: Demo) -> str:
    """Return what a demonstration is an example of: its first output that isn't free text, or nothing."""
    assert spec.signature is not None
    for field in spec.signature.outputs:
        if not is_text(field):
            return canonical_json(demo.get(field.name))
    return ""


def _classes(spec: PredictorSpec, pool: Sequence[Owned]) -> int:
    return len({_kind(spec, demo) for demo, _ in pool})


def _covering(spec: PredictorSpec, pool: Sequence[Owned], size: int, rng: np.random.Generator) -> list[Owned]:
    """Return `size` demonstrations in random order that take the kinds of answer in turn."""
    groups: dict[str, list[Owned]] = {}
    for index in rng.permutation(len(pool)):
        groups.setdefault(_kind(spec, pool[int(index)][0]), []).append(pool[int(index)])
    keys = sorted(groups)
    turns = zip_longest(*(groups[keys[int(i)]] for i in rng.permutation(len(keys))))
    chosen = [item for turn in turns for item in turn if item is not None][:size]
    return [chosen[int(i)] for i in rng.permutation(len(chosen))]

"""Splits: train to learn from, select to choose by, test to report on; by content, and never two of them alike."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..signatures.canonical import digest
from ..signatures.errors import DataError, nearest
from ..signatures.values import jsonable
from .data import Dataset, Example
from .duplicates import Unions, near_text, normal_text, same_text
from .rng import order_key

TRAIN_SHARE, TRAIN_LEAST, TRAIN_MOST = 0.2, 10, 150
TEST_SHARE = 0.4
SEALED_ROWS = 40
"""Fewer rows than this make no sealed claim: of a gain of 12 points, 30 test rows show one in five."""

SEALED_TEST = 12
"""Nor does a test set smaller than this, wherever it came from."""

_STRATA_SHARE, _STRATA_MOST = 0.25, 200
_SETS = ("test", "select", "train")  # ties go to the sets that the evidence needs first


@dataclass(frozen=True)
class Splits:
    """Three sets of examples that share no row, no near-duplicate and no group.

    Attributes:
        train: what demonstrations and proposals come from.
        select: what the choice is made by.
        test: sealed; read once, after the choice.
        sealed_claim: whether the test set is large enough for a claim.
        moved: rows placed with a near-duplicate of theirs rather than by their own draw.
        dropped: rows left out of train and select because the user's own test (or select) set has a near-duplicate.
        stratified_by: the column whose proportions every set keeps.
        grouped_by: the column whose groups stay together.
        groups: for rows that aren't alone (near-duplicates, groups), the name of their group by example id.
        note: what is unusual about these sets, in sentences; empty if nothing is.
    """

    train: tuple[Example, ...]
    select: tuple[Example, ...]
    test: tuple[Example, ...]
    sealed_claim: bool
    moved: int = 0
    dropped: int = 0
    stratified_by: str | None = None
    grouped_by: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows of each set."""
        return {"train": len(self.train), "select": len(self.select), "test": len(self.test)}

    @property
    def digest(self) -> str:
        """The sha256 of which example is in which set, and where."""
        return digest([[example.id for example in rows] for rows in (self.train, self.select, self.test)])

    def groups_of(self, examples: Iterable[Example]) -> list[str]:
        """Return the group of each example, its own id where it is alone: what `paired_evidence` takes as `groups`."""
        return [self.groups.get(example.id, example.id) for example in examples]


def split(
    dataset: Dataset | None,
    *,
    seed: int,
    stratify: str | None = None,
    group: str | None = None,
    train: Dataset | None = None,
    select: Dataset | None = None,
    test: Dataset | None = None,
) -> Splits:
    """Divide a dataset into train, select and test.

    Train takes 20 % (10 to 150 rows, at most a third), test 40 %, select the rest. The result depends on the set of
    examples and the seed, not on their order; a row more or less moves few others.

    Args:
        dataset: What to divide; None only if all three sets are the user's own.
        seed: Any integer.
        stratify: The column whose proportions every set keeps. None takes the label with few values where there is
            exactly one; "" takes none.
        group: The column whose groups (a customer, a document) stay in one set.
        train: The user's own set; the dataset then fills the others.
        select: The same.
        test: The same. What is in it, or nearly, is left out of the others.
    """
    own = {name: rows for name, rows in (("train", train), ("select", select), ("test", test)) if rows is not None}
    pool = () if dataset is None or len(own) == 3 else dataset.examples
    open_sets = [name for name in _SETS if name not in own]
    _check_sizes(own, len(pool), open_sets)
    everything = _unique([*_by_set(own), *pool])
    unions, near, dissolved = _unions(everything, pool, group, seed)
    place = {example.id: index for index, example in enumerate(everything)}
    sets, dropped = _own_sets(own, unions, place)
    taken = {unions.find(place[example.id]) for rows in sets.values() for example in rows}
    free = [example for example in pool if unions.find(place[example.id]) not in taken]
    dropped += sum(example.id not in {item.id for rows in own.values() for item in rows} for example in pool) - len(
        free
    )
    if open_sets and not free:
        raise DataError(
            f"The data breaks `some row isn't in a set of your own`: all {len(pool)} are, or nearly; give other rows."
        )
    column = _stratum(free, stratify, group)
    if open_sets:
        sets.update(_fill(free, open_sets, unions, place, column, seed))
    ordered = {
        name: tuple(sorted(rows, key=lambda e: order_key(seed, "split.order", e.id))) for name, rows in sets.items()
    }
    rows_total = len(pool) + sum(len(rows) for rows in own.values())
    claim = len(ordered["test"]) >= SEALED_TEST and ("test" in own or rows_total >= SEALED_ROWS)
    return Splits(
        **ordered,
        sealed_claim=claim,
        moved=len(free) - len({near.find(place[example.id]) for example in free}),
        dropped=dropped,
        stratified_by=column,
        grouped_by=group,
        groups=_named_groups(everything, unions),
        note=_note(ordered, own, rows_total, claim, dropped, dissolved, ignored=dataset is not None and len(own) == 3),
    )


def _check_sizes(own: Mapping[str, Dataset], pool: int, open_sets: Sequence[str]) -> None:
    for name, rows in own.items():
        if not len(rows):
            raise DataError(f"The {name} set breaks `at least one row`: it is empty; give rows, or leave it out.")
    if open_sets and pool < (2 if len(open_sets) > 1 else 1):
        raise DataError(
            f"The data breaks `at least two rows to divide into {', '.join(sorted(open_sets))}`: found {pool}; "
            "give more rows, or sets of your own."
        )


def _by_set(own: Mapping[str, Dataset]) -> list[Example]:
    return [example for name in _SETS if name in own for example in own[name].examples]


def _unique(examples: Iterable[Example]) -> list[Example]:
    # Sorted, so that no tie anywhere is broken by the order of a file.
    return sorted({example.id: example for example in examples}.values(), key=lambda example: example.id)


def _unions(
    examples: Sequence[Example], pool: Sequence[Example], group: str | None, seed: int
) -> tuple[Unions, Unions, int]:
    """Return the rows that stay together, those that do as near-duplicates, and how many of them had to be parted."""
    texts = [normal_text(example) for example in examples]
    near = near_text(texts, same_text(texts))
    sizes = Counter(near.roots())
    dissolved = 0
    largest = max(sizes.values(), default=0)
    if len(pool) > 2 and largest > max(len(examples) / 3, 2):
        # A third of the rows near-duplicates of each other: no division could keep them together. Equal texts stay.
        dissolved = largest
        near = same_text(texts)
        if max(Counter(near.roots()).values()) > max(len(examples) / 3, 2):
            near = Unions(len(examples))
    unions = Unions(len(examples))
    for row, root in enumerate(near.roots()):
        unions.join(row, root)
    if group is not None:
        first: dict[str, int] = {}
        for row, example in enumerate(examples):
            unions.join(row, first.setdefault(_key(example, group, "group"), row))
        if len(first) < 2 and pool:
            raise DataError(
                f"The data breaks `column {group} has at least two groups`: found {len(first)}; name another column."
            )
    return unions, near, dissolved


def _own_sets(
    own: Mapping[str, Dataset], unions: Unions, place: Mapping[str, int]
) -> tuple[dict[str, list[Example]], int]:
    """Return the user's own sets, without what test has from select and train, and what select has from train."""
    taken: set[int] = set()
    sets: dict[str, list[Example]] = {}
    dropped = 0
    for name in _SETS:
        if name not in own:
            continue
        kept = [example for example in own[name].examples if unions.find(place[example.id]) not in taken]
        if not kept:
            raise DataError(
                f"The {name} set breaks `no row of it is in another set`: all {len(own[name])} rows are, or nearly; "
                "give other rows, or leave the set out."
            )
        dropped += len(own[name]) - len(kept)
        sets[name] = kept
        taken |= {unions.find(place[example.id]) for example in kept}
    return sets, dropped


def _sizes(count: int, open_sets: Sequence[str]) -> dict[str, int]:
    """Return how many of `count` rows each open set gets."""
    if len(open_sets) == 1:
        return {open_sets[0]: count}
    train = 0
    if "train" in open_sets:
        train = min(max(round(TRAIN_SHARE * count), TRAIN_LEAST), TRAIN_MOST, count // 3)
    if "test" not in open_sets:
        return {"select": count - train, "train": train}
    if "select" not in open_sets:
        return {"test": count - train, "train": train}
    # With a train set of the user's own, test and select share the data as they would have shared the rest.
    share = TEST_SHARE if "train" in open_sets else TEST_SHARE / (1 - TRAIN_SHARE)
    test = min(round(share * count), count - train - 1)
    return {"test": test, "select": count - train - test} | ({"train": train} if "train" in open_sets else {})


def _fill(
    free: Sequence[Example],
    open_sets: Sequence[str],
    unions: Unions,
    place: Mapping[str, int],
    column: str | None,
    seed: int,
) -> dict[str, list[Example]]:
    """Deal whole clusters into the open sets, stratum by stratum, each stratum in its proportions."""
    clusters: dict[int, list[Example]] = defaultdict(list)
    for example in sorted(free, key=lambda example: example.id):
        clusters[unions.find(place[example.id])].append(example)
    strata: dict[str, list[list[Example]]] = defaultdict(list)
    for cluster in clusters.values():
        votes = Counter("" if column is None else _key(example, column, "stratify") for example in cluster)
        strata[min(votes, key=lambda value: (-votes[value], value))].append(cluster)
    names = sorted(strata, key=lambda value: order_key(seed, "split.strata", value))
    counts = [sum(len(cluster) for cluster in strata[name]) for name in names]
    seats = _seats(counts, _sizes(len(free), open_sets), _tie(seed, names))
    found: dict[str, list[Example]] = {name: [] for name in open_sets}
    carry = dict.fromkeys(open_sets, 0)
    for index, name in enumerate(names):
        left = {set_name: seats[set_name][index] + carry[set_name] for set_name in open_sets}
        queue = sorted(strata[name], key=lambda rows: order_key(seed, "split", rows[0].id))
        # Large clusters first, each where most seats are left; what they take too much is carried to the next stratum.
        for cluster in sorted((rows for rows in queue if len(rows) > 1), key=len, reverse=True):
            chosen = max(open_sets, key=lambda set_name: left[set_name])
            found[chosen] += cluster
            left[chosen] -= len(cluster)
        # The rest set by set along their random order, so that a row more only moves those at the borders.
        alone = [rows[0] for rows in queue if len(rows) == 1]
        for set_name in open_sets:
            taken, alone = alone[: max(left[set_name], 0)], alone[max(left[set_name], 0) :]
            found[set_name] += taken
            left[set_name] -= len(taken)
        carry = left
    return found


def _tie(seed: int, names: Sequence[str]) -> Callable[[str, int], bytes]:
    return lambda set_name, index: order_key(seed, f"split.seats.{set_name}", names[index])


def _seats(counts: Sequence[int], sizes: Mapping[str, int], tie: Callable[[str, int], bytes]) -> dict[str, list[int]]:
    """Return the seats of each set in each stratum: totals exact, each within rounding of its proportion.

    Largest remainders, set by set; the last set takes what is left.
    """
    left = list(counts)
    total = sum(counts)
    found: dict[str, list[int]] = {}
    # The smallest set first: it suffers most from rounding.
    names = sorted(sizes, key=lambda name: (sizes[name], name))
    for name in names[:-1]:
        ideal = [sizes[name] * count / total for count in counts] if total else [0.0 for _ in counts]
        seats = [min(int(share), rest) for share, rest in zip(ideal, left, strict=True)]
        order = sorted(range(len(counts)), key=lambda i: (seats[i] - ideal[i], tie(name, i)))
        for index in [*order, *order]:
            if sum(seats) >= sizes[name]:
                break
            if seats[index] < left[index]:
                seats[index] += 1
        found[name] = seats
        left = [rest - taken for rest, taken in zip(left, seats, strict=True)]
    found[names[-1]] = left
    return found


def _stratum(examples: Sequence[Example], stratify: str | None, group: str | None) -> str | None:
    """Return the column to stratify by: the one asked for, or the only label with few values."""
    if stratify == "":
        return None
    if stratify is not None:
        for example in examples:
            _key(example, stratify, "stratify")
        return stratify
    few = []
    for name in dict.fromkeys(name for example in examples for name in example.labels):
        values = [example.labels.get(name) for example in examples]
        if name == group or any(value is None or not isinstance(value, (str, int)) for value in values):
            continue
        distinct = len(set(values))
        if 2 <= distinct <= min(max(2, _STRATA_SHARE * len(examples)), _STRATA_MOST):
            few.append(name)
    return few[0] if len(few) == 1 else None


def _key(example: Example, column: str, option: str) -> str:
    columns: dict[str, Any] = {**example.labels, **example.inputs}
    if column not in columns:
        raise DataError(
            f"The data breaks `every row has the column that {option} names`: row {example.row} has no `{column}`; "
            f"{nearest(column, list(columns))}"
        )
    return digest(jsonable(columns[column]))


def _named_groups(examples: Sequence[Example], unions: Unions) -> dict[str, str]:
    roots = unions.roots()
    sizes = Counter(roots)
    return {example.id: examples[root].id for example, root in zip(examples, roots, strict=True) if sizes[root] > 1}


def _note(
    sets: Mapping[str, Sequence[Example]],
    own: Mapping[str, Dataset],
    rows: int,
    claim: bool,
    dropped: int,
    dissolved: int,
    *,
    ignored: bool,
) -> str:
    notes = []
    if not claim:
        too_few = (
            f"{rows} rows are" if rows < SEALED_ROWS and "test" not in own else f"{len(sets['test'])} test rows are"
        )
        notes.append(
            f"{too_few} too few for a sealed claim: what is reported on the test set describes its rows, and promises "
            f"nothing about others; give at least {SEALED_ROWS} rows, or a test set of your own."
        )
    for name in sorted(sets):
        if not sets[name]:
            notes.append(f"The {name} set is empty: the rows, or their groups, are too few to fill it.")
    if dropped:
        notes.append(
            f"{dropped} rows were left out of train and select, because a set of your own has them, or nearly."
        )
    if dissolved:
        notes.append(
            f"{dissolved} rows are near-duplicates of each other, too many to keep in one set: they were divided, and "
            "the test set may hold rows much like those the program learned from."
        )
    if ignored:
        notes.append("All three sets are your own: the data beside them was not used.")
    return " ".join(notes)

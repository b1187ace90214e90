"""Near-duplicates: which rows say the same, so that none of them is learned from and judged on at once.

Exact duplicates are equal normalised texts. Near-duplicates have a Jaccard similarity of at least .85 of their word
3-shingles; candidates come from MinHash bands (Broder 1997, "On the resemblance and containment of documents"; banding
as in Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3), and each is checked exactly.
"""

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..signatures.values import jsonable
from .data import Example

Words = npt.NDArray[np.uint64]

THRESHOLD = 0.85
SHINGLE = 3
BANDS, BAND_ROWS = 16, 4  # finds a pair at similarity .85 with probability 1 - 8e-6
BOILERPLATE = 0.5  # shingles in more than this share of the rows are a template
_FEW_ROWS = 5  # among so few, what most rows share may as well be a duplicate
_WIDE_BUCKET = 60  # beyond this a bucket is compared with its clusters' first members, not pair by pair

_PUNCTUATION = re.compile(r"[^\w\s]|_")


class Unions:
    """Disjoint sets of row numbers, the smallest number standing for its set."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        """Return the number that stands for the item's set."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        first, second = self.find(one), self.find(other)
        self._parent[max(first, second)] = min(first, second)

    def roots(self) -> list[int]:
        """Return for each item the number that stands for its set."""
        return [self.find(item) for item in range(len(self._parent))]


def normal_text(example: Example) -> str:
    """Return the text of an example's inputs without case, punctuation and white space."""
    parts = []
    for name in sorted(example.inputs):
        value = example.inputs[name]
        parts.append(_folded(value) if isinstance(value, str) else _flat(value))
    return "\n".join(parts)


def same_text(texts: Sequence[str]) -> Unions:
    """Return the rows joined by equal normalised texts."""
    unions = Unions(len(texts))
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        unions.join(row, first.setdefault(text, row))
    return unions


def near_text(texts: Sequence[str], unions: Unions) -> Unions:
    """Join rows with near-duplicate texts, in place, and return the joined rows.

    Shingles in most rows are a template ("Classify the message: ...") and say nothing about two rows being the same.
    """
    rows = sorted(set(unions.roots()))
    shingles, owners = _shingles([texts[row] for row in rows])
    if not len(shingles):
        return unions
    shingles, owners = _without_boilerplate(shingles, owners, len(rows))
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]]) if len(owners) else np.array([], np.int64)
    if not len(starts):
        return unions
    ends = np.r_[starts[1:], len(owners)]
    held = [rows[owner] for owner in owners[starts]]
    sets = dict(zip(held, (frozenset(shingles[a:b].tolist()) for a, b in zip(starts, ends, strict=True)), strict=True))
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for row, key in zip(held, _band_keys(shingles, starts, band), strict=True):
            buckets[key].append(row)
        for bucket in buckets.values():
            if len(bucket) > 1:
                _join_bucket(bucket, sets, unions)
    return unions


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", "")
    words = " ".join(_PUNCTUATION.sub(" ", text).split())
    # Brackets to balance, symbols to continue: without punctuation all of them would be one text.
    return words if 2 * len(words) > len("".join(text.split())) else " ".join(text.split())


def _flat(value: Any) -> str:
    return " ".join(json.dumps(jsonable(value), ensure_ascii=False, sort_keys=True).casefold().split())


def _shingles(texts: Sequence[str]) -> tuple[Words, npt.NDArray[np.int64]]:
    """Return the distinct shingles of all texts as hashes, sorted by text, and the text of each."""
    numbers: dict[str, int] = {}
    flat: list[int] = []
    lengths: list[int] = []
    for text in texts:
        words = text.split()
        lengths.append(len(words))
        for word in words:
            number = numbers.get(word)
            if number is None:
                # Not hash(), which differs from process to process.
                name = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                number = numbers[word] = int.from_bytes(name, "big")
            flat.append(number)
    words_ = np.array(flat, dtype=np.uint64)
    owner = np.repeat(np.arange(len(texts)), lengths)
    if len(words_) < SHINGLE:
        return np.array([], np.uint64), np.array([], np.int64)
    inside = owner[SHINGLE - 1 :] == owner[: len(owner) - SHINGLE + 1]
    mixed = np.zeros(len(inside), np.uint64)
    for place in range(SHINGLE):
        mixed = _mix(mixed + words_[place : len(words_) - SHINGLE + 1 + place])
    hashes, owner = mixed[inside], owner[: len(inside)][inside]
    order = np.lexsort((hashes, owner))
    hashes, owner = hashes[order], owner[order]
    fresh = np.r_[True, (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])] if len(hashes) else inside[:0]
    return hashes[fresh], owner[fresh]


def _without_boilerplate(
    shingles: Words, owners: npt.NDArray[np.int64], count: int
) -> tuple[Words, npt.NDArray[np.int64]]:
    _, place, often = np.unique(shingles, return_inverse=True, return_counts=True)
    kept = often[place] <= max(BOILERPLATE * count, _FEW_ROWS)
    return shingles[kept], owners[kept]


def _mix(values: Words) -> Words:
    """Scramble 64-bit numbers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _band_keys(shingles: Words, starts: npt.NDArray[np.int64], band: int) -> list[bytes]:
    least = []
    for row in range(BAND_ROWS):
        # One fixed seed per hash function: its number in the family.
        salted = _mix(shingles ^ _mix(np.array([1 + band * BAND_ROWS + row], np.uint64)))
        least.append(np.minimum.reduceat(salted, starts))
    return [key.tobytes() for key in np.stack(least, axis=1)]


def _join_bucket(bucket: Sequence[int], sets: dict[int, frozenset[int]], unions: Unions) -> None:
    seen: list[int] = []
    for row in bucket:
        against: Iterable[int] = seen
        if len(bucket) > _WIDE_BUCKET:
            against = list({unions.find(other): other for other in reversed(seen)}.values())[:_WIDE_BUCKET]
        for other in against:
            if unions.find(row) != unions.find(other) and _similar(sets[row], sets[other]):
                unions.join(row, other)
        seen.append(row)


def _similar(one: frozenset[int], other: frozenset[int]) -> bool:
    # Sizes alone bound the similarity; the intersection is the costly part.
    if min(len(one), len(other)) < THRESHOLD * max(len(one), len(other)):
        return False
    shared = len(one & other)
    return shared >= THRESHOLD * (len(one) + len(other) - shared)

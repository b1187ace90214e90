"""Splits: by content, never overlapping, whatever the order of the file."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitrify.compiler.data import Dataset, Example, to_dataset
from vitrify.compiler.duplicates import near_text, normal_text, same_text
from vitrify.compiler.rng import generator, integer, order_key
from vitrify.compiler.splits import Splits, split
from vitrify.signatures.errors import DataError

WORDS = [f"w{number}" for number in range(4000)]


def text(rng: random.Random, length: int = 20) -> str:
    return " ".join(rng.choices(WORDS, k=length))


def dataset(count: int, *, labels: int = 3, seed: int = 0) -> Dataset:
    rng = random.Random(seed)
    return to_dataset([{"q": text(rng), "label": f"l{i % labels}"} for i in range(count)], input_names=["q"])


def of(rows: Sequence[dict[str, Any]], *inputs: str) -> Dataset:
    return to_dataset(rows, input_names=inputs or ("q",))


def ids(examples: Sequence[Example]) -> list[str]:
    return [example.id for example in examples]


def where(splits: Splits) -> dict[str, str]:
    return {example.id: name for name in ("train", "select", "test") for example in getattr(splits, name)}


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "train", "select", "test"),
    [(2, 0, 1, 1), (3, 1, 1, 1), (10, 3, 3, 4), (30, 10, 8, 12), (39, 10, 13, 16), (40, 10, 14, 16), (50, 10, 20, 20),
     (100, 20, 40, 40), (1000, 150, 450, 400)],
)  # fmt: skip
def test_sizes(rows: int, train: int, select: int, test: int) -> None:
    splits = split(dataset(rows), seed=0)
    assert {"train": train, "select": select, "test": test} == splits.counts
    assert (rows >= 40) == splits.sealed_claim
    assert ("too few" in splits.note) == (rows < 40)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 130), st.integers(), st.integers(1, 9))
def test_every_row_is_in_one_set(count: int, seed: int, labels: int) -> None:
    data = dataset(count, labels=labels)
    splits = split(data, seed=seed)
    found = [*ids(splits.train), *ids(splits.select), *ids(splits.test)]
    assert sorted(ids(data.examples)) == sorted(found)
    assert 0 < len(splits.select) and 0 < len(splits.test)
    assert len(splits.train) <= count / 3


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows(count: int) -> None:
    with pytest.raises(DataError, match=f"found {count}"):
        split(Dataset(dataset(2).examples[:count], ("q",), ("label",)), seed=0)
    with pytest.raises(DataError, match="at least two rows"):
        split(None, seed=0)


# --- determinism ----------------------------------------------------------------------------------------------------


def test_the_order_of_the_file_does_not_matter_and_the_seed_does() -> None:
    data = dataset(120)
    rows = list(data.examples)
    random.Random(1).shuffle(rows)
    shuffled = Dataset(tuple(rows), data.input_names, data.label_names)
    assert split(data, seed=0) == split(shuffled, seed=0)
    assert split(data, seed=0).digest == split(shuffled, seed=0).digest
    assert split(data, seed=0).digest != split(data, seed=1).digest
    assert split(data, seed=-5).digest != split(data, seed=5).digest


def test_one_row_more_moves_few_others() -> None:
    data = dataset(300)
    before, after = where(split(Dataset(data.examples[1:], ("q",), ("label",)), seed=0)), where(split(data, seed=0))
    assert sum(before[key] != after[key] for key in before) <= 12


def test_sets_do_not_follow_the_ids() -> None:
    # A set must not be "the smallest hashes": labels and ids would be confounded between seeds.
    data = dataset(400, labels=1)
    first, second = where(split(data, seed=0)), where(split(data, seed=1))
    together = sum(first[key] == second[key] for key in first) / 400
    assert 0.25 < together < 0.45  # .2**2 + .4**2 + .4**2 = .36 by chance


def test_other_hash_seeds_give_the_same_bytes() -> None:
    code = (
        "import random\nfrom vitrify.compiler.data import to_dataset\nfrom vitrify.compiler.splits import split\n"
        "r = random.Random(0)\n"
        "rows = [{'q': ' '.join(r.choices('abcdefgh', k=r.randint(3, 9))), 'l': r.choice('xyz')} for _ in range(300)]\n"
        "s = split(to_dataset(rows, input_names=['q']), seed=0)\nprint(s.digest, s.moved, sorted(s.groups.items()))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert " " in runs[0].stdout


# --- strata ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.integers(0, 1000))
def test_proportions_are_kept_within_rounding(counts: list[int], seed: int) -> None:
    rng = random.Random(seed)
    rows = [{"q": text(rng), "label": f"l{i}"} for i, count in enumerate(counts) for _ in range(count)]
    if len(rows) < 3:
        return
    splits = split(of(rows), seed=seed, stratify="label")
    assert "label" == splits.stratified_by
    for name, size in splits.counts.items():
        found = Counter(example.labels["label"] for example in getattr(splits, name))
        for i, count in enumerate(counts):
            assert abs(found[f"l{i}"] - count * size / len(rows)) < 2


def test_the_only_label_with_few_values_is_taken() -> None:
    rng = random.Random(0)
    rows = [{"q": text(rng), "label": f"l{i % 3}", "note": text(rng)} for i in range(60)]
    assert "label" == split(of(rows), seed=0).stratified_by
    assert split(of(rows), seed=0, stratify="").stratified_by is None
    assert split(of([{**row, "other": i % 2} for i, row in enumerate(rows)]), seed=0).stratified_by is None
    assert split(of([{"q": row["q"], "label": row["note"]} for row in rows]), seed=0).stratified_by is None
    assert split(of([{"q": row["q"], "label": [i % 2]} for i, row in enumerate(rows)]), seed=0).stratified_by is None
    with pytest.raises(DataError, match="did you mean `label`"):
        split(of(rows), seed=0, stratify="labels")


# --- duplicates and groups ------------------------------------------------------------------------------------------


def test_rows_that_differ_in_case_space_and_punctuation_stay_together() -> None:
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(50):
        said = text(rng, 4)
        rows += [{"q": said, "a": number}, {"q": f"  {said.upper()}!\n", "a": -number}]
    splits = split(of(rows), seed=3)
    place = where(splits)
    number_of: dict[int, set[str]] = {}
    for example in [*splits.train, *splits.select, *splits.test]:
        number_of.setdefault(abs(example.labels["a"]), set()).add(place[example.id])
    assert all(len(sets) == 1 for sets in number_of.values())
    assert 50 == splits.moved
    assert 100 == len(splits.groups) and 50 == len(set(splits.groups.values()))
    assert len(set(splits.groups_of(splits.test))) == len(splits.test) / 2


def test_near_duplicates_stay_together() -> None:
    rng = random.Random(5)
    rows, pairs = [], []
    for number in range(100):
        words = text(rng, 40).split()
        changed = [*words]
        changed[rng.randrange(40)] = "changed"  # one word of 40: a Jaccard similarity of at least 35 / 41 = .854
        rows += [{"q": " ".join(words), "n": 2 * number}, {"q": " ".join(changed), "n": 2 * number + 1}]
        pairs.append((2 * number, 2 * number + 1))
    splits = split(of(rows), seed=0)
    by_number = {example.labels["n"]: name for name in splits.counts for example in getattr(splits, name)}
    assert all(by_number[one] == by_number[other] for one, other in pairs)
    assert 100 == splits.moved


def test_different_rows_are_not_near_duplicates() -> None:
    assert 0 == split(dataset(500), seed=0).moved


def test_a_shared_template_or_document_is_no_duplicate() -> None:
    rng = random.Random(2)
    document = text(rng, 300)
    rows = [
        {"doc": document, "q": f"Read the document above and answer this question: {text(rng, 6)}"} for _ in range(80)
    ]
    splits = split(of(rows, "doc", "q"), seed=0)
    assert 0 == splits.moved
    assert "" == splits.note


def test_texts_of_symbols_only_are_not_all_the_same() -> None:
    rows = [{"q": "".join("([{<>}])"[(number >> bit) & 7] for bit in range(6))} for number in range(64)]
    splits = split(of(rows), seed=0)
    assert 0 < len(splits.train) and splits.moved < 10
    assert "too many" not in splits.note


def test_too_many_near_duplicates_to_keep_together_are_divided_and_said() -> None:
    rng = random.Random(1)
    rows = []
    base = text(rng, 60).split()
    for number in range(50):
        words = [*base]
        words[number] = "x"
        rows.append({"q": " ".join(words) + f" {number}" * (number > 25)})
    rows += [{"q": text(rng)} for _ in range(51)]
    splits = split(of(rows), seed=0)
    assert 101 == sum(splits.counts.values())
    assert "near-duplicates" in splits.note or splits.moved == 0
    assert min(splits.counts.values()) > 0
    same = [{"q": "hello" + "!" * number} for number in range(60)]
    assert {"train": 12, "select": 24, "test": 24} == split(of(same), seed=0).counts


def test_groups_stay_together() -> None:
    rng = random.Random(0)
    rows = [{"q": text(rng), "label": i % 2, "customer": f"c{i // 5}"} for i in range(200)]
    splits = split(of(rows), seed=0, group="customer")
    sets: dict[str, set[str]] = {}
    for name in splits.counts:
        for example in getattr(splits, name):
            sets.setdefault(example.labels["customer"], set()).add(name)
    assert all(len(names) == 1 for names in sets.values())
    assert "customer" == splits.grouped_by
    assert 0 == splits.moved
    assert 200 == len(splits.groups)
    assert all(abs(count - ideal) <= 10 for count, ideal in zip(splits.counts.values(), (40, 80, 80), strict=True))
    with pytest.raises(DataError, match="did you mean `customer`"):
        split(of(rows), seed=0, group="custmer")
    with pytest.raises(DataError, match="at least two groups"):
        split(of([{**row, "customer": 1} for row in rows]), seed=0, group="customer")


def test_two_groups_fill_two_sets_and_the_note_says_so() -> None:
    rng = random.Random(0)
    rows = [{"q": text(rng), "customer": i % 2} for i in range(60)]
    splits = split(of(rows), seed=0, group="customer")
    assert 0 == len(splits.train) and 30 == len(splits.test)
    assert "train set is empty" in splits.note


# --- sets of the user's own -----------------------------------------------------------------------------------------


def test_what_is_in_the_own_test_set_is_left_out_of_the_rest() -> None:
    data = dataset(100)
    leaked = [{"q": example.inputs["q"].upper() + "!", "label": "x"} for example in data.examples[:7]]
    fresh = [{"q": text(random.Random(900 + i)), "label": "y"} for i in range(30)]
    splits = split(data, seed=0, test=of(leaked + fresh))
    assert 37 == len(splits.test)
    assert 7 == splits.dropped
    assert 93 == len(splits.train) + len(splits.select)
    assert splits.sealed_claim
    assert "7 rows were left out" in splits.note


def test_own_train_leaves_test_and_select_half_each() -> None:
    data, more = dataset(100), dataset(20, seed=9)
    splits = split(data, seed=0, train=more)
    assert {"train": 20, "select": 50, "test": 50} == splits.counts
    assert sorted(ids(more.examples)) == sorted(ids(splits.train))


def test_own_select_and_all_three() -> None:
    one, two, three = dataset(40, seed=1), dataset(50, seed=2), dataset(60, seed=3)
    assert {"train": 20, "select": 40, "test": 80} == split(dataset(100), seed=0, select=one).counts
    assert {"train": 100, "select": 40, "test": 50} == split(dataset(100), seed=0, select=one, test=two).counts
    splits = split(None, seed=0, train=one, select=two, test=three)
    assert {"train": 40, "select": 50, "test": 60} == splits.counts
    assert "" == splits.note
    assert "not used" in split(dataset(5), seed=0, train=one, select=two, test=three).note


def test_own_sets_that_make_no_sense() -> None:
    data = dataset(30)
    empty = Dataset((), ("q",), ("label",))
    with pytest.raises(DataError, match=r"test set .* it is empty"):
        split(data, seed=0, test=empty)
    with pytest.raises(DataError, match=r"select set .* all 30 rows"):
        split(dataset(30, seed=2), seed=0, select=data, test=data)
    with pytest.raises(DataError, match="set of your own"):
        split(data, seed=0, test=data)
    assert not split(data, seed=0, test=dataset(5, seed=7)).sealed_claim


# --- parts and speed ------------------------------------------------------------------------------------------------


def test_similarity_is_exact_at_the_threshold() -> None:
    # 20 shingles, 17 shared: |A| = |B| = 18.5 isn't possible; 22 words have 20 shingles, and a changed last word 19.
    words = [f"a{i}" for i in range(22)]
    texts = [" ".join(words), " ".join([*words[:-1], "z"]), " ".join([*words[:-3], "x", "y", "z"])]
    fillers = [f"f{i} g{i} h{i} i{i}" for i in range(10)]
    roots = near_text(texts + fillers, same_text(texts + fillers)).roots()
    assert [0, 0] == roots[:2]  # 19 of 21: .905
    assert 2 == roots[2]  # 17 of 23: .739, and 18 of 22 with the second: .818


def test_normal_text_joins_the_inputs_by_name() -> None:
    one = Example({"b": "It's  A test.", "a": {"k": [1, 2]}}, {})
    assert '{"k": [1, 2]}\nits a test' == normal_text(one)


def test_ten_thousand_rows_are_split_in_three_seconds() -> None:
    rng = random.Random(0)
    rows = [{"q": text(rng, rng.randint(4, 40)), "label": i % 77} for i in range(10_000)]
    data = of(rows)
    begin = time.perf_counter()
    splits = split(data, seed=0)
    assert time.perf_counter() - begin < 3
    assert (150, 4000) == (len(splits.train), len(splits.test))


def test_many_rows_in_one_bucket_are_still_fast() -> None:
    rng = random.Random(0)
    base = text(rng, 60).split()
    rows = []
    for number in range(3000):
        words = text(rng, 60).split() if number % 3 else [*base]
        words[rng.randrange(60)] = f"n{number}"
        rows.append({"q": " ".join(words)})
    data = of(rows)
    begin = time.perf_counter()
    splits = split(data, seed=0)
    assert time.perf_counter() - begin < 5
    assert 900 <= splits.moved <= 1000


def test_generators_by_name() -> None:
    assert generator(0, "a").integers(1 << 40) == generator(0, "a").integers(1 << 40)
    draws = {int(generator(seed, name).integers(1 << 60)) for seed in (-1, 0, 1, 2**80) for name in ("a", "b", "a/b")}
    assert 12 == len(draws)
    assert all(1 <= integer(seed, "x") < 2**31 for seed in range(-50, 50))
    assert order_key(0, "a", "x") != order_key(0, "a", "y")
    with pytest.raises(TypeError):
        generator("0", "a")  # type: ignore[arg-type]


def test_splits_serialise_as_ids() -> None:
    assert 64 == len(split(dataset(50), seed=0).digest)
    json.dumps(split(dataset(50), seed=0).counts)

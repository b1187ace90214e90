"""What must still be the same for a plan to hold: by identity, and nothing may be exchanged unseen."""

import copy
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.programs.marks import Marks


class Ask(dspy.Signature):
    """Answer."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Name(str):
    """A text that is equal to another and isn't the same."""


def sample(values: list[dict[str, Any]], plain: bool) -> list[Any]:
    return [dict(value) if plain else dspy.Example(**value) for value in values]


def as_seen(signature: Any, demos: Any) -> list[Any]:
    """Return all that counts, the slow way."""
    found = [signature, signature.__doc__]
    for demo in demos:
        values = getattr(demo, "_store", demo)
        found += [demo, *values, *values.values()]
    return found


values = st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(300, 303), max_size=3), max_size=4)


@given(values, st.booleans(), st.randoms())
def test_every_exchange_is_seen(given_values: list[dict[str, Any]], plain: bool, random: Any) -> None:
    demos = sample(given_values, plain)
    marks, before = Marks(Ask, demos), as_seen(Ask, demos)
    assert marks.hold(Ask, demos) and marks.hold(Ask, tuple(demos)) and marks.hold(Ask, list(demos))
    other = list(demos)
    for _ in range(2):
        demo: Any = random.choice(other) if other else {}
        store = getattr(demo, "_store", demo)
        name = random.choice("abcd")
        match random.randrange(8):
            case 0:
                store[name] = random.choice([300, 301, Name("x")])
            case 1:
                store.pop(name, None)
            case 2 if name in store:
                store[name + "2"] = store.pop(name)  # renamed, its value kept
            case 3:
                random.shuffle(other)
            case 4 if other:
                other.pop()
            case 5:
                other.append(dspy.Example(a=1))
            case 6 if other:
                other[0] = copy.copy(other[0])
            case 7 if store and not plain:
                demo._store = dict(store)  # the same values in another place: refused, and harmlessly so
                assert not marks.hold(Ask, other)
                return
    now = as_seen(Ask, other)
    same = len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
    assert marks.hold(Ask, other) == same


def test_the_signature_counts_with_its_instructions() -> None:
    demos = sample([{"question": "q", "answer": "a"}], plain=False)
    marks = Marks(Ask, demos)
    assert not marks.hold(Ask.with_instructions("Otherwise."), demos)
    assert not marks.hold("question -> answer", demos) and not marks.hold(None, demos)
    other = Ask.with_instructions("As before.")
    marks = Marks(other, demos)
    other.instructions = "Changed in place."
    assert not marks.hold(other, demos)


@pytest.mark.parametrize("plain", [True, False])
def test_a_deep_copy_holds_its_own(plain: bool) -> None:
    demos = sample([{"question": "q", "answer": ["a", "b"]}, {"question": "r"}], plain)
    holder: dict[str, Any] = {"marks": Marks(Ask, demos), "demos": demos}
    other: Any = copy.deepcopy(holder)
    assert other["marks"].hold(Ask, other["demos"]) and not other["marks"].hold(Ask, demos)
    values = other["demos"][0] if plain else other["demos"][0]._store
    values["answer"] = list(values["answer"])
    assert not other["marks"].hold(Ask, other["demos"]) and holder["marks"].hold(Ask, demos)

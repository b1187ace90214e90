"""What the embedded model learns from a prompt: similarity of texts, and evidence for labels.

Similarity is the cosine of TF-IDF vectors over word stems and character n-grams, weighted from the prompt's own
demonstrations. A label's evidence is kernel regression over the demonstrations plus the overlap of the input with the
label's name and with what the instruction says about it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_WORD: Final = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# English function words say little about what a text is about. That is all the English the model knows, with the
# suffixes below; every other weight comes from the prompt.
_FUNCTION: Final = frozenset(
    _WORD.findall(
        "a an the this that these those it its he she they them we us you your yours i me my mine our his her their "
        "and or but if then so as of to in on at by for from with without about into over is am are was were be been "
        "being do does did done have has had having will would can could shall should may might must not no nor yes "
        "there here what which who whom whose when where why how any some all each both more most very just also too "
        "only than now up out off i'm i've i'd i'll it's don't doesn't didn't can't isn't wasn't please"
    )
)
_SUFFIXES: Final = (
    "ations",
    "ation",
    "ings",
    "ing",
    "ies",
    "ied",
    "ers",
    "est",
    "ed",
    "es",
    "er",
    "ly",
    "al",
    "s",
    "y",
    "e",
)

POWER: Final = 2.0
"""The kernel: a demonstration counts with its similarity to this power."""
NAME_WEIGHT: Final = 0.45
"""What the overlap with a label's name and description counts, against the similarity of demonstrations."""
FUNCTION_WEIGHT: Final = 0.25
GRAM_WEIGHT: Final = 0.45


def words(text: str) -> list[str]:
    """Return a text's words in lower case; identifiers are split at capitals and underscores."""
    return [word.lower() for word in _WORD.findall(_CAMEL.sub(" ", text))]


def stem(word: str) -> str:
    """Return a word without its commonest English suffix; at least three letters stay."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    # "stopped" and "stop" meet here.
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word


def is_function_word(word: str) -> bool:
    """Whether a word says little about a text's subject."""
    return word in _FUNCTION


def content_stems(text: str) -> list[str]:
    """Return the stems of a text's content words, in order, repeated as often as they occur."""
    return [stem(word) for word in words(text) if word not in _FUNCTION]


def features(text: str) -> dict[str, float]:
    """Return a text's features with their raw weights: stems, pairs of stems, and n-grams of characters."""
    found: dict[str, float] = {}
    previous = ""
    for word in words(text):
        light = word in _FUNCTION
        root = word if light else stem(word)
        found[root] = found.get(root, 0.0) + (FUNCTION_WEIGHT if light else 1.0)
        if previous:
            pair = f"{previous} {root}"
            found[pair] = found.get(pair, 0.0) + (FUNCTION_WEIGHT if light else 0.5)
        previous = root
        if not light and len(word) > 3:
            padded = f"<{word}>"
            weight = GRAM_WEIGHT / math.sqrt(len(word))
            for start in range(len(padded) - 3):
                gram = "#" + padded[start : start + 4]
                found[gram] = found.get(gram, 0.0) + weight
    return found


class Index:
    """Texts, ready to be compared with another one.

    `similarities(text)` takes time in proportion to the features that the text shares with the indexed ones.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        raw = [features(text) for text in texts]
        count: dict[str, int] = {}
        for vector in raw:
            for name in vector:
                count[name] = count.get(name, 0) + 1
        self.size = len(texts)
        self._idf = {name: math.log(1.0 + (self.size + 1.0) / (seen + 0.5)) for name, seen in count.items()}
        self._unseen = math.log(1.0 + (self.size + 1.0) / 0.5)
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for number, vector in enumerate(raw):
            weighted = {name: math.sqrt(value) * self._idf[name] for name, value in vector.items()}
            norm = math.sqrt(math.fsum(value * value for value in weighted.values())) or 1.0
            for name, value in weighted.items():
                self._postings.setdefault(name, []).append((number, value / norm))

    def similarities(self, text: str) -> list[float]:
        """Return the cosine between `text` and every indexed text, in [0, 1]."""
        sums = [0.0] * self.size
        square = 0.0
        idf, unseen, postings = self._idf, self._unseen, self._postings
        for name, value in features(text).items():
            weight = math.sqrt(value) * idf.get(name, unseen)
            square += weight * weight
            for number, other in postings.get(name, ()):
                sums[number] += weight * other
        norm = math.sqrt(square) or 1.0
        return [total / norm for total in sums]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence says.

    Attributes:
        choice: the position of the label with the most evidence; the first of equals.
        scores: the evidence for every label.
        nearest: the number of the demonstration that spoke for it most; None if its name or description did.
        similarity: that demonstration's similarity.
    """

    choice: int
    scores: tuple[float, ...]
    nearest: int | None
    similarity: float


class LabelLearner:
    """Chooses among labels by demonstrations, names and descriptions.

    Args:
        names: the labels as text, in the contract's order.
        descriptions: what the prompt says about each; may be empty.
        shown: for every demonstration of the index its label's position, or None.
    """

    def __init__(self, names: Sequence[str], descriptions: Sequence[str], shown: Sequence[int | None]) -> None:
        self._count = len(names)
        self._shown = shown
        self._about: dict[str, list[tuple[int, float]]] = {}
        self._norms: list[float] = []
        bags = [_bag(name, text) for name, text in zip(names, descriptions, strict=True)]
        seen: dict[str, int] = {}
        for bag in bags:
            for root in bag:
                seen[root] = seen.get(root, 0) + 1
        for number, bag in enumerate(bags):
            # A word that many labels have tells none of them apart.
            weighted = {root: value * math.log(1.0 + len(bags) / seen[root]) for root, value in bag.items()}
            norm = math.sqrt(math.fsum(value * value for value in weighted.values())) or 1.0
            self._norms.append(norm)
            for root, value in weighted.items():
                self._about.setdefault(root, []).append((number, value))
        self._prefixes: dict[str, list[str]] = {}
        for root in self._about:
            if len(root) >= 4:
                self._prefixes.setdefault(root[:4], []).append(root)

    def decide(self, text: str, similarities: Sequence[float]) -> Verdict:
        """Return the verdict on an input, given its similarity to every demonstration."""
        named = self._named(text)
        votes = [0.0] * self._count
        nearest: list[tuple[float, int] | None] = [None] * self._count
        for number, (label, similarity) in enumerate(zip(self._shown, similarities, strict=True)):
            if label is not None and similarity > 0:
                votes[label] += similarity**POWER
                best = nearest[label]
                if best is None or similarity > best[0]:
                    nearest[label] = (similarity, number)
        scores = tuple(
            # Rounded, so that the order of additions decides nothing.
            round(vote ** (1.0 / POWER) + NAME_WEIGHT * about, 9)
            for vote, about in zip(votes, named, strict=True)
        )
        choice = scores.index(max(scores))
        by = nearest[choice]
        if by is None or NAME_WEIGHT * named[choice] > by[0]:
            return Verdict(choice, scores, None, named[choice])
        return Verdict(choice, scores, by[1], by[0])

    def _named(self, text: str) -> list[float]:
        """Return each label's overlap with the input by name and description, in [0, 1]."""
        sums = [0.0] * self._count
        for root in dict.fromkeys(content_stems(text)):
            matches = [(root, 1.0)] if root in self._about else self._similar(root)
            for match, closeness in matches:
                for number, value in self._about[match]:
                    sums[number] += closeness * value
        return [value / norm if norm else 0.0 for value, norm in zip(sums, self._norms, strict=True)]

    def _similar(self, root: str) -> list[tuple[str, float]]:
        """Return the label words that begin as `root` does, with how much of the longer one they share."""
        found = []
        for other in self._prefixes.get(root[:4], ()) if len(root) >= 4 else ():
            shared = 0
            for mine, theirs in zip(root, other, strict=False):
                if mine != theirs:
                    break
                shared += 1
            closeness = shared / max(len(root), len(other))
            if closeness >= 0.6:
                found.append((other, closeness))
        return found


def _bag(name: str, description: str) -> dict[str, float]:
    """Return a label's words: those of its name count twice."""
    bag: dict[str, float] = {}
    for root in content_stems(description):
        bag[root] = 1.0
    for root in content_stems(name):
        bag[root] = 2.0
    return bag


def descriptions(names: Sequence[str], texts: Iterable[str]) -> list[str]:
    """Return what the texts (an instruction, a field's description) say about each label.

    A line or sentence that mentions one label is about it (`- cards: lost or stolen`, "Answer `cards` if ..."); in one
    that mentions several, what follows each label up to the next is about it.
    """
    about: dict[str, list[str]] = {name: [] for name in names}
    ordered = sorted((name for name in names if name), key=lambda name: (-len(name), name))
    if not ordered:
        return ["" for _ in names]
    pattern = re.compile(r"(?<![\w-])(?:" + "|".join(re.escape(name) for name in ordered) + r")(?![\w-])")
    for text in texts:
        for line in text.split("\n"):
            _read_line(line, pattern, about)
    return [" ".join(about[name]) for name in names]


def _read_line(line: str, pattern: re.Pattern[str], about: Mapping[str, list[str]]) -> None:
    """Add what one line says about the labels that it mentions."""
    start = re.match(r"\s*(?:[-*•]|\d+[.)])?\s*[`'\"*]*(" + pattern.pattern + r")[`'\"*]*\s*(?::|=|->|→|–|—| - )", line)
    if start:  # the whole line is one entry, whatever labels its words happen to be
        about[start.group(1)].append(line[start.end() :])
        return
    for sentence in re.split(r"(?<=[.!?;])\s+", line):
        mentions = list(pattern.finditer(sentence))
        names = list(dict.fromkeys(match.group() for match in mentions))
        if len(names) == 1:
            about[names[0]].append(pattern.sub(" ", sentence))
            continue
        ends = [*(match.start() for match in mentions[1:]), len(sentence)]
        for match, end in zip(mentions, ends, strict=bool(mentions)):
            about[match.group()].append(sentence[match.end() : end])

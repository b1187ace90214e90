"""Writes an instruction from the examples that a proposer's prompt shows: the task, and each label's typical words."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .embedded_answers import contained
from .embedded_learner import content_stems, is_function_word, stem, words

_LINE: Final = re.compile(
    r"^\s*(?:[-*•]\s*|\d+[.)]\s*|\[\d+\]\s*)?[`*\"]*([A-Za-z_][\w -]{0,30}?)[`*\"]*\s*[:=]\s*(.*)$"
)
_MARKER: Final = re.compile(r"^\s*\[\[ ## (\w+) ## \]\]\s*(.*)$")
_ARROW: Final = re.compile(r"^\s*(?:[-*•]\s*|\d+[.)]\s*)?(.*\S)\s*(?:->|=>|→)\s*(\S.*)$")
_IGNORED: Final = re.compile(
    r"predict|actual|got$|score|feedback|reason|rationale|thought|correct\?|trace", re.IGNORECASE
)
_WANTED: Final = re.compile(r"expected|gold|target|label|should|answer|output|correct", re.IGNORECASE)

_OPENINGS: Final = (
    "{task}",
    "{task} Compare the input with the typical words below and choose what fits best.",
    "{task} Decide by the words that each choice goes with.",
    "Read the input closely. {task}",
    "{task} Look for these signs before you answer.",
    "You are an expert at this task. {task}",
)
_SIZES: Final = (4, 6, 8, 12)


@dataclass(frozen=True, slots=True)
class Record:
    """An example found in a prompt's text: the text that goes in, the answer that should come out."""

    text: str
    answer: str


def write_instruction(inputs: Mapping[str, str]) -> str:
    """Return an instruction for the task whose examples the inputs show; a function of the whole prompt.

    The wording, and how many words are listed, are drawn from a hash of the prompt: another tip, another draw.
    """
    seed = hashlib.sha256(json.dumps(sorted(inputs.items())).encode()).digest()
    base = _base_instruction(inputs)
    name, records = _records(inputs)
    labels = sorted({record.answer for record in records})
    if not records:
        return _opening(inputs, seed).format(task=base or "Answer with what the input asks for.").strip()
    if not _are_labels(records):
        return _without_labels(base, name, records, inputs, seed)
    task = base or f"Choose the {name.replace('_', ' ').lower()} that fits the input."
    size = _SIZES[seed[1] % len(_SIZES)]
    tip = " ".join(text for key, text in inputs.items() if "tip" in key.lower()).lower()
    if "concise" in tip or "simple" in tip:
        size = 4
    elif "informative" in tip or "descriptive" in tip:
        size = 12
    typical = _typical(records, by_share=seed[2] % 2 == 0)
    task, kept = _without_entries(task, labels)
    lines = []
    for label in labels:
        listed = [*kept.get(label, []), *(word for word in typical[label] if word not in kept.get(label, []))]
        lines.append(f"- {label}: {', '.join(listed[: size + len(kept.get(label, []))])}")
    lines.extend(f"- {label}: {', '.join(old)}" for label, old in sorted(kept.items()) if label not in labels)
    return _opening(inputs, seed).replace("{task}", task.strip()).strip() + "\n\n" + "\n".join(lines)


def _opening(inputs: Mapping[str, str], seed: bytes) -> str:
    """Return the frame that the prompt's tip asks for, else one drawn by the seed."""
    tip = " ".join(text for key, text in inputs.items() if "tip" in key.lower()).lower()
    if "persona" in tip:
        return _OPENINGS[5]
    if "high stakes" in tip:
        return "{task} A mistake here is expensive, so check each choice before you answer."
    return _OPENINGS[seed[0] % len(_OPENINGS)]


def _base_instruction(inputs: Mapping[str, str]) -> str:
    """Return the instruction that is to be improved, if the prompt shows one."""
    for name, text in inputs.items():
        lowered = name.lower()
        if "instruction" in lowered and not any(part in lowered for part in ("previous", "history", "tip")):
            return text.strip()
    return ""


def _without_entries(task: str, labels: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """Return an instruction without its own `- label: words` lines, and those lines' words by label."""
    kept: dict[str, list[str]] = {}
    rest = []
    for line in task.split("\n"):
        match = re.match(r"- ([^:]{1,60}): (.+)$", line)
        if match and (match.group(1) in labels or "," in match.group(2)):
            kept[match.group(1)] = [word.strip() for word in match.group(2).split(",")]
        else:
            rest.append(line)
    return "\n".join(rest).strip(), kept


def _records(inputs: Mapping[str, str]) -> tuple[str, list[Record]]:
    """Return the name of what is to be answered and the examples, from the input that shows most of them."""
    best: tuple[str, list[Record]] = ("", [])
    for name, text in inputs.items():
        if "tip" in name.lower() or "previous" in name.lower() or "instruction" in name.lower():
            continue
        key, found = _answered(_rows(text))
        if len(found) > len(best[1]):
            best = (key, found)
    return best


def _rows(text: str) -> list[dict[str, str]]:
    """Return the examples in a text as rows of named values, whatever way they are written."""
    data = _json_rows(text)
    if data:
        return data
    pairs = [match.groups() for match in map(_ARROW.match, text.split("\n")) if match]
    if len(pairs) >= 2:
        return [{"input": before.strip("`\"' "), "answer": after.strip("`\"' ")} for before, after in pairs]
    lines = text.split("\n")
    counts: dict[str, int] = {}
    for line in lines:
        match = _MARKER.match(line) or _LINE.match(line)
        if match:
            counts[match.group(1).strip()] = counts.get(match.group(1).strip(), 0) + 1
    rows: list[dict[str, str]] = []
    key = ""
    for line in lines:
        match = _MARKER.match(line) or _LINE.match(line)
        # A name that occurs once is part of somebody's sentence.
        if match and (counts[match.group(1).strip()] > 1 or not rows):
            key = match.group(1).strip()
            if not rows or key in rows[-1]:
                rows.append({})
            rows[-1][key] = match.group(2).strip("«» ")
        elif rows and key and line.strip():
            rows[-1][key] = f"{rows[-1][key]} {line.strip('«» ')}".strip()
    return rows


def _json_rows(text: str) -> list[dict[str, str]]:
    """Return the rows of a JSON list of objects, or of lines that are JSON objects."""
    candidates = [text, *(line for line in text.split("\n") if line.strip().startswith("{"))]
    rows: list[dict[str, str]] = []
    for candidate in candidates:
        try:
            data: Any = json.loads(candidate.strip().rstrip(","))
        except (ValueError, RecursionError):
            continue
        for item in data if isinstance(data, list) else [data]:
            if isinstance(item, dict):
                rows.append({str(key): value if isinstance(value, str) else str(value) for key, value in item.items()})
        if rows and candidate is text:
            break
    return rows


def _answered(rows: Sequence[Mapping[str, str]]) -> tuple[str, list[Record]]:
    """Return which of the rows' names is the answer's, and the rows as records."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if not _IGNORED.search(name)]
    best, lowest = "", 0.0
    for position, name in enumerate(names):
        values = [row[name] for row in rows if row.get(name)]
        if len(values) * 2 < len(rows) or len(names) < 2:
            continue
        length = sum(len(value.split()) for value in values) / len(values)
        # Answers repeat, are short, come last, and are called so.
        rank = len(set(values)) / len(values) + 0.05 * length - 0.1 * position - 0.5 * bool(_WANTED.search(name))
        if not best or rank < lowest:
            best, lowest = name, rank
    records = []
    for row in rows:
        text = " ".join(value for name, value in row.items() if name != best and not _IGNORED.search(name))
        if best and row.get(best) and text:
            records.append(Record(text, row[best].strip("`\"' ")))
    return best, records


def _are_labels(records: Sequence[Record]) -> bool:
    """Whether the answers are labels: short, and repeated or written as identifiers."""
    answers = [record.answer for record in records]
    short = sum(len(answer.split()) for answer in answers) / len(answers) <= 4
    repeated = len(set(answers)) <= 0.8 * len(answers)
    named = all(re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", answer) for answer in answers)
    return short and (named or (repeated and not all(re.fullmatch(r"[\d.,$%-]+", answer) for answer in answers)))


def _typical(records: Sequence[Record], *, by_share: bool) -> dict[str, list[str]]:
    """Return each label's typical words, the most typical first."""
    spelled: dict[str, dict[str, int]] = {}
    seen: dict[str, dict[str, int]] = {}
    sizes: dict[str, int] = {}
    for record in records:
        sizes[record.answer] = sizes.get(record.answer, 0) + 1
        counts = seen.setdefault(record.answer, {})
        for root in dict.fromkeys(content_stems(record.text)):
            counts[root] = counts.get(root, 0) + 1
        for word in words(record.text):
            if not is_function_word(word):
                forms = spelled.setdefault(stem(word), {})
                forms[word] = forms.get(word, 0) + 1
    everywhere: dict[str, int] = {}
    for counts in seen.values():
        for root, count in counts.items():
            everywhere[root] = everywhere.get(root, 0) + count
    typical = {}
    for label, counts in seen.items():
        own = set(content_stems(label))
        # P(label | word), smoothed; or how often the label has it, discounted by how common it is.
        rank = {
            root: -(count / (everywhere[root] + 1.0) * (count**0.5 if by_share else count / sizes[label]))
            for root, count in counts.items()
            if root not in own and len(root) > 1
        }
        ordered = sorted(rank, key=lambda root: (rank[root], root))
        typical[label] = [min(spelled[root], key=lambda word: (-spelled[root][word], word)) for root in ordered]
    return typical


def _without_labels(base: str, name: str, records: Sequence[Record], inputs: Mapping[str, str], seed: bytes) -> str:
    """Return an instruction for a task whose answers aren't labels: what form the answers have."""
    answers = [record.answer for record in records]
    length = round(sum(len(answer.split()) for answer in answers) / len(answers))
    hints = []
    if sum(bool(re.fullmatch(r"[\d.,$%-]+", answer)) for answer in answers) * 2 > len(answers):
        hints.append("Work it out step by step and give the number alone.")
    elif sum(contained(record.answer, {"": record.text}) for record in records) * 2 > len(records):
        hints.append("Copy the answer from the input, word for word.")
    hints.append(f"Answer in about {length} word{'s' if length != 1 else ''}.")
    if seed[3] % 2:
        hints.append(f"For example: {answers[seed[4] % len(answers)]}")
    task = base or f"Give the {name.replace('_', ' ').lower() or 'answer'} for the input."
    return _opening(inputs, seed).replace("{task}", task).strip() + " " + " ".join(hints)

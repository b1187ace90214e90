"""What the embedded model answers in a field that is no label: numbers, spans of the input, items, JSON by a schema."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..signatures.canonical import JsonValue
from .embedded_learner import content_stems, is_function_word, words

_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|\n+")
_NAME: Final = re.compile(
    r"(?:[A-Z][\w'’.-]*|\d[\d,.]*)(?:\s+(?:(?:of|the|and|de|von)\s+)?(?:[A-Z][\w'’.-]*|\d[\d,.]*))*"
)
_ASKING: Final = ("question", "query", "claim", "request", "ask")
_LONGEST: Final = 40_000


def numbers(text: str) -> list[float]:
    """Return the numbers in a text, in order."""
    return [float(match.replace(",", "")) for match in _NUMBER.findall(text[-_LONGEST:])[-200:]]


def sentences(text: str) -> list[str]:
    """Return a text's sentences and lines, stripped, without empty ones."""
    return [part.strip() for part in _SENTENCE.split(text[:_LONGEST]) if part.strip()]


def contained(value: str, inputs: Mapping[str, str]) -> bool:
    """Whether a text occurs in the inputs, but for case."""
    wanted = value.strip().lower()
    return bool(wanted) and any(wanted in text.lower() for text in inputs.values())


def question_and_context(inputs: Mapping[str, str]) -> tuple[str, str]:
    """Return what is asked and what it is asked about: by the field's name, else the shortest of several inputs."""
    if not inputs:
        return "", ""
    names = [name for name in inputs if any(part in name.lower() for part in _ASKING)]
    asking = names[0] if names else min(inputs, key=lambda name: len(inputs[name]))
    context = "\n".join(text for name, text in inputs.items() if name != asking)
    return inputs[asking], context or inputs[asking]


def best_sentence(question: str, context: str) -> str:
    """Return the context's sentence that shares most with the question; the first of equals."""
    wanted = set(content_stems(question))
    best, most = "", -1.0
    for sentence in sentences(context):
        stems = content_stems(sentence)
        shared = len(wanted.intersection(stems))
        score = shared / (len(stems) + 8.0) ** 0.5
        if score > most:
            best, most = sentence, score
    return best


def span(question: str, context: str, length: float) -> str:
    """Return the part of the context that may answer the question, about `length` words long."""
    sentence = best_sentence(question, context)
    if length >= 8 or not sentence:
        return sentence
    asked = set(content_stems(question))
    how_many = re.search(r"\bhow (?:many|much|old|long|far)\b|\bwhat year\b|\bwhen\b", question.lower())
    best, most = "", float("-inf")
    for position, match in enumerate(_NAME.finditer(sentence)):
        stems = content_stems(match.group())
        if not stems or asked.issuperset(stems) or (len(stems) == 1 and is_function_word(match.group().lower())):
            continue
        numeric = bool(re.search(r"\d", match.group()))
        score = (1.0 if numeric == bool(how_many) else 0.0) - len(asked.intersection(stems)) - 0.01 * position
        if score > most:
            best, most = match.group().strip(" .,"), score
    return best or " ".join(sentence.split()[: max(1, round(length))])


def free_text(name: str, inputs: Mapping[str, str]) -> str:
    """Return a text for a field without demonstrations: a query's words, or the sentence that matters most."""
    question, context = question_and_context(inputs)
    if any(part in name.lower() for part in ("query", "search", "keyword")):
        kept = dict.fromkeys(word for word in words(question) if not is_function_word(word))
        return " ".join(list(kept)[:12])
    if any(part in name.lower() for part in ("answer", "response")) and context is not question:
        return span(question, context, 3)
    return best_sentence(question, context)


def pick_items(inputs: Mapping[str, str], shown: Sequence[Sequence[str]]) -> list[str]:
    """Return items of the input that share most with the question, as many as the demonstrations show on average.

    `shown` holds the demonstrations' items: they tell whether an item is a whole entry of the input or its title.
    """
    question, context = question_and_context(inputs)
    entries = _entries(inputs)
    known = {item.strip().lower() for items in shown for item in items}
    wanted = set(content_stems(question))
    scored: list[tuple[float, int, str]] = []
    for position, entry in enumerate(entries):
        title = re.split(r"\s*[|:]\s", entry, maxsplit=1)[0].strip()
        short = not known or max((len(item) for item in known), default=0) < 60
        stems = content_stems(entry)
        score = len(wanted.intersection(stems)) / (len(stems) + 12.0) ** 0.5
        score += len(wanted.intersection(content_stems(title)))
        scored.append((-score, position, title if short else entry))
    count = max(1, round(sum(map(len, shown)) / len(shown))) if shown else 2
    chosen = list(dict.fromkeys(item for _, _, item in sorted(scored)))[:count]
    return chosen or ([context[:80]] if context else [])


def _entries(inputs: Mapping[str, str]) -> list[str]:
    """Return the items of the input that is a list, or has most lines."""
    best: list[str] = []
    for text in inputs.values():
        try:
            data = json.loads(text) if text.lstrip().startswith("[") else None
        except (ValueError, RecursionError):
            data = None
        if isinstance(data, list):
            found = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in data]
        else:
            found = [re.sub(r"^\[\d+\]\s*", "", line).strip("«» \t") for line in text.split("\n") if line.strip()]
        if len(found) > len(best):
            best = found
    return best


def instance(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, depth: int = 0) -> JsonValue:
    """Return the plainest value that a JSON schema allows."""
    root = schema if root is None else root
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        target = root.get("$defs", {}).get(name)
        return instance(target, root, depth + 1) if isinstance(target, dict) and depth < 20 else None
    for key in ("default", "const"):
        if key in schema:
            return schema[key]  # type: ignore[no-any-return]  # a schema is JSON: Any
    if schema.get("enum"):
        return schema["enum"][0]  # type: ignore[no-any-return]  # a schema is JSON: Any
    options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if options:
        plain = [option for option in options if option.get("type") != "null"] or options
        return None if depth >= 20 else instance(plain[0], root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> JsonValue:
    """Return the plainest value of a schema's `type`."""
    kind = schema.get("type")
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        value = max(0, low) if isinstance(low, (int, float)) else 0
        return min(value, schema.get("maximum", value))  # type: ignore[no-any-return]  # a schema is JSON: Any
    if kind == "boolean":
        return False
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})] * schema.get("minItems", 0)
        return [instance(item, root, depth + 1) for item in items[:50]] if depth < 20 else []
    if kind == "object":
        properties = schema.get("properties", {})
        names = [name for name in properties if name in schema.get("required", properties)]
        return {name: instance(properties[name], root, depth + 1) for name in names} if depth < 20 else {}
    if kind == "string":
        formats = {"date": "2000-01-01", "date-time": "2000-01-01T00:00:00Z", "time": "00:00:00"}
        return formats.get(str(schema.get("format")), "x" * int(schema.get("minLength", 0)))
    return None

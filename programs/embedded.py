"""The embedded model: an in-context learner without weights, a pure function from the messages to a reply.

It knows nothing but what the prompt says, and it makes no claim about real models: it exists so that a compile can be
seen and tested without a key and without a network.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from ..signatures.canonical import JsonValue
from .embedded_answers import (
    contained,
    free_text,
    instance,
    numbers,
    pick_items,
    question_and_context,
    span,
)
from .embedded_learner import Index, LabelLearner, Verdict, descriptions
from .embedded_reader import Contract, OutputField, read_contract, read_demonstrations, read_input, text_of
from .embedded_writer import write_instruction
from .lm import Capabilities, Reply, Request, Usage

__all__ = ["Embedded"]

_TOKEN: Final = re.compile(r"\w+|[^\w\s]")
_REASONING: Final = ("reasoning", "rationale", "thought", "explanation")


class Embedded:
    """The offline model, an LM like any other; sampling parameters and replicates change nothing.

    Args:
        memory: how many prompts' unchanging parts are kept read. A cache of a pure function: it changes no answer.
    """

    def __init__(self, *, memory: int = 64) -> None:
        self._memory = memory
        self._lessons: OrderedDict[tuple[tuple[str, str], ...], Lesson] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name it goes by."""
        return "embedded"

    @property
    def endpoint(self) -> str:
        """No server: the same everywhere."""
        return "embedded"

    @property
    def capabilities(self) -> Capabilities:
        """Text in, text out."""
        return Capabilities()

    def __repr__(self) -> str:
        return "Embedded()"

    def complete(self, request: Request) -> Reply:
        """Return the reply; never fails."""
        messages = request.messages
        lesson = self._lesson(messages[:-1])
        asked = text_of(messages[-1]) if messages else ""
        text = lesson.reply(asked)
        return Reply(text, Usage(lesson.tokens + count_tokens(asked), count_tokens(text)), "embedded")

    async def acomplete(self, request: Request) -> Reply:
        """Return the reply; never fails."""
        return self.complete(request)

    def close(self) -> None:
        """Forget what was read."""
        with self._lock:
            self._lessons.clear()

    def _lesson(self, messages: Sequence[Mapping[str, JsonValue]]) -> "Lesson":
        """Return what the messages before the last teach, from memory where they were read before."""
        key = tuple((str(message.get("role")), text_of(message)) for message in messages)
        with self._lock:
            lesson = self._lessons.get(key)
            if lesson is not None:
                self._lessons.move_to_end(key)
                return lesson
        lesson = Lesson(messages)  # outside the lock: at worst two threads read the same
        with self._lock:
            self._lessons[key] = lesson
            while len(self._lessons) > self._memory:
                self._lessons.popitem(last=False)
        return lesson


class Lesson:
    """What the messages before the last one teach: the contract and the demonstrations, made ready."""

    def __init__(self, messages: Sequence[Mapping[str, JsonValue]]) -> None:
        self.tokens = sum(count_tokens(text_of(message)) for message in messages)
        system = "\n".join(text_of(message) for message in messages if message.get("role") in ("system", "developer"))
        self._contract = read_contract(system)
        if self._contract is None:
            return
        demos = read_demonstrations(messages, self._contract)
        self._demos = demos
        self._index = Index([_joined(demo.inputs, self._contract) for demo in demos])
        self._learners: dict[str, tuple[LabelLearner, Sequence[JsonValue]]] = {}
        for output in self._contract.outputs:
            labels = self._labels(output)
            if labels:
                self._learners[output.name] = (self._learner(output, labels, self._contract), labels)

    def reply(self, asked: str) -> str:
        """Return the reply to the last message, in the format that the contract asks for."""
        contract = self._contract
        if contract is None:
            return "The embedded model answers prompts in DSPy's chat or JSON format only; this one has no contract."
        inputs = read_input(asked, contract)
        text = _joined(inputs, contract)
        similarities = self._index.similarities(text)
        order = sorted(range(len(similarities)), key=lambda number: (-round(similarities[number], 9), number))
        values: dict[str, JsonValue] = {}
        verdicts: dict[str, Verdict] = {}
        for output in contract.outputs:
            if output.name in self._learners:
                learner, labels = self._learners[output.name]
                verdicts[output.name] = learner.decide(text, similarities)
                values[output.name] = labels[verdicts[output.name].choice]
            elif not self._is_reasoning(output):
                values[output.name] = self._answer(output, inputs, order)
        for output in contract.outputs:
            if self._is_reasoning(output):
                values[output.name] = self._reason(values, verdicts, order, similarities)
        return _written(contract, values)

    def _is_reasoning(self, output: OutputField) -> bool:
        contract = self._contract
        alone = contract is not None and len(contract.outputs) == 1
        return output.kind == "text" and not alone and any(part in output.name.lower() for part in _REASONING)

    def _labels(self, output: OutputField) -> Sequence[JsonValue]:
        """Return the values to choose from: the contract's, or those that demonstrations repeat."""
        if output.kind == "label":
            return _numeric(output, [demo.outputs.get(output.name) for demo in self._demos])
        if output.kind == "json" or self._is_reasoning(output):
            return ()
        shown = [demo.outputs[output.name] for demo in self._demos if output.name in demo.outputs]
        distinct = list(dict.fromkeys(value for value in shown if isinstance(value, (str, int, float))))
        if len(shown) < 4 or len(distinct) > 0.7 * len(shown):
            return ()
        # In the order of their text, so that the order of demonstrations decides nothing.
        return sorted(distinct, key=str)

    def _learner(self, output: OutputField, labels: Sequence[JsonValue], contract: Contract) -> LabelLearner:
        names = [str(label) for label in labels]
        where = {name: number for number, name in enumerate(names)}
        shown = [where.get(str(demo.outputs.get(output.name, "\0"))) for demo in self._demos]
        return LabelLearner(names, descriptions(names, [contract.objective, output.description]), shown)

    def _answer(self, output: OutputField, inputs: Mapping[str, str], order: Sequence[int]) -> JsonValue:
        """Return the value of a field that is neither label nor reasoning."""
        near = [self._demos[number] for number in order if output.name in self._demos[number].outputs]
        shown = [demo.outputs[output.name] for demo in near]
        if output.kind in ("int", "float"):
            return _number(output, inputs, shown)
        if output.kind == "json":
            return _json(output, inputs, shown, [demo.inputs for demo in near])
        if "instruction" in output.name.lower() and not shown:
            return write_instruction(inputs)
        if not shown:
            return free_text(output.name, inputs)
        texts = [value if isinstance(value, str) else str(value) for value in shown]
        taken = [text for text, demo in zip(texts, near, strict=True) if contained(text, demo.inputs)]
        if 2 * len(taken) < len(texts):
            return texts[0]
        question, context = question_and_context(inputs)
        return span(question, context, sum(len(text.split()) for text in taken) / len(taken)) or texts[0]

    def _reason(
        self,
        values: Mapping[str, JsonValue],
        verdicts: Mapping[str, Verdict],
        order: Sequence[int],
        similarities: Sequence[float],
    ) -> str:
        """Return the sentence that names the evidence for the answer."""
        for name, verdict in verdicts.items():
            if verdict.nearest is None:
                how = "fits the name and the description best" if verdict.similarity else "is the first choice allowed"
                return f"`{values[name]}` {how} (overlap {verdict.similarity:.2f})."
            return f"Closest to the example {self._quoted(verdict.nearest)} (similarity {verdict.similarity:.2f})."
        if order and similarities[order[0]] > 0:
            return f"Closest to the example {self._quoted(order[0])} (similarity {similarities[order[0]]:.2f})."
        return "No example is close, so the answer follows the instruction and the input."

    def _quoted(self, number: int) -> str:
        text = " ".join(" ".join(self._demos[number].inputs.values()).split())
        return "'" + (text if len(text) <= 60 else text[:57] + "...") + "'"


def count_tokens(text: str) -> int:
    """Return the tokens of a text as this model counts them: words and punctuation marks."""
    return len(_TOKEN.findall(text))


def _joined(inputs: Mapping[str, str], contract: Contract) -> str:
    return "\n".join(inputs[name] for name in contract.inputs if name in inputs)


def _numeric(output: OutputField, shown: Sequence[JsonValue]) -> Sequence[JsonValue]:
    """Return a label field's values; an enum's digits become numbers unless demonstrations show them as text.

    The prompt doesn't say the types of an enum's values; in JSON they make a difference.
    """
    if not output.enum or not all(re.fullmatch(r"-?\d+", str(label)) for label in output.labels):
        return output.labels
    if any(isinstance(value, str) and value in output.labels for value in shown):
        return output.labels
    return tuple(int(str(label)) for label in output.labels)


def _number(output: OutputField, inputs: Mapping[str, str], shown: Sequence[JsonValue]) -> JsonValue:
    """Return the last number of the input, else the nearest demonstration's."""
    found = [number for text in inputs.values() for number in numbers(text)]
    given = [value for value in shown if isinstance(value, (int, float)) and not isinstance(value, bool)]
    value: float = found[-1] if found else given[0] if given else 0
    if abs(value) > 1e15:
        value = 0
    return int(value) if output.kind == "int" or value == int(value) else value


def _json(
    output: OutputField, inputs: Mapping[str, str], shown: Sequence[JsonValue], givens: Sequence[Mapping[str, str]]
) -> JsonValue:
    """Return items of the input where demonstrations show that, else the nearest demonstration's value."""
    schema = output.schema
    if schema.get("type") == "array" and schema.get("items", {}) == {"type": "string"}:
        lists = [[item for item in value if isinstance(item, str)] for value in shown if isinstance(value, list)]
        items = [(item, given) for value, given in zip(lists, givens, strict=False) for item in value]
        taken = sum(contained(item, given) for item, given in items)
        if (items and 2 * taken >= len(items)) or (not shown and any(text.startswith("[") for text in inputs.values())):
            return list(pick_items(inputs, lists))
    fitting = {"array": list, "object": dict}.get(str(schema.get("type")))
    for value in shown:
        if fitting is None or isinstance(value, fitting):
            return value
    return instance(schema)


def _written(contract: Contract, values: Mapping[str, JsonValue]) -> str:
    """Return the values in the contract's format."""
    if contract.as_json:
        return json.dumps(
            {output.name: values[output.name] for output in contract.outputs}, ensure_ascii=False, indent=2
        )
    parts = []
    for output in contract.outputs:
        value = values[output.name]
        if output.kind == "json" or value is None:
            text = json.dumps(value, ensure_ascii=False)
        else:
            # A marker inside a value would end it.
            text = str(value).replace("[[ ##", "[ ##")
        parts.append(f"[[ ## {output.name} ## ]]\n{text}")
    return "\n\n".join([*parts, "[[ ## completed ## ]]\n"])

"""The embedded model: it reads DSPy's prompts, learns from them alone, and always answers in the format asked for."""

import enum
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vitrify.programs.embedded import Embedded
from vitrify.programs.embedded_learner import descriptions
from vitrify.programs.embedded_reader import read_contract
from vitrify.programs.lm import Request

DATA = Path(os.environ.get("VITRIFY_DATA", Path(__file__).parents[2] / "shared" / "data")) / "tasks"
dspy: Any = pytest.importorskip("dspy")

ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter()]
both = pytest.mark.parametrize("adapter", ADAPTERS, ids=["chat", "json"])


def one_of(labels: Sequence[str]) -> Any:
    """Return the Literal type of labels that are known at run time only."""
    return Literal.__getitem__(tuple(labels))


def signature(instruction: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    """Return a dspy.Signature; a field is its type, or (type, description)."""
    fields = {}
    for make, given_fields in ((dspy.InputField, inputs), (dspy.OutputField, outputs)):
        for name, kind in given_fields.items():
            kind, desc = kind if isinstance(kind, tuple) else (kind, None)
            fields[name] = (kind, make(desc=desc) if desc else make())
    return dspy.Signature(fields, instruction)


class Tone(enum.Enum):
    WARM = "warm"
    COLD = "cold"


class Point(pydantic.BaseModel):
    x: int
    label: str
    tags: list[str] = []


Triage = signature(
    "\n".join(
        [
            "Route a customer message to the team that owns it.",
            "",
            "- cards: lost, stolen or swallowed plastic",
            "- transfers: money sent or received",
            "- identity: passport, selfie, proof of who you are",
        ]
    ),
    {"message": str},
    {"team": Literal["cards", "transfers", "identity"]},
)


def request(adapter: Any, of: Any, inputs: dict[str, Any], demos: Sequence[Mapping[str, Any]] = ()) -> Request:
    messages = adapter.format(of, [dspy.Example(**demo) for demo in demos], inputs)
    return Request("embedded", tuple(messages))


def ask(
    adapter: Any, of: Any, inputs: dict[str, Any], demos: Sequence[Mapping[str, Any]] = (), lm: Any = None
) -> dict[str, Any]:
    reply = (lm or Embedded()).complete(request(adapter, of, inputs, demos))
    parsed: dict[str, Any] = adapter.parse(of, reply.text)
    return parsed


@both
def test_it_reads_the_contract_that_dspy_writes(adapter: Any) -> None:
    Everything = signature(
        "Do it.\n\nSecond paragraph: [[ ## team ## ]] and {braces}.",
        {"message": (str, "what (they) wrote"), "items": list[str]},
        {
            "reasoning": (str, "why\nand how"),
            "team": (Literal["it's", "a; b", "c)", 'say "x"'], "the team"),
            "level": Literal[1, 2],
            "ok": bool,
            "tone": Tone,
            "count": int,
            "share": float | None,
            "maybe": Literal["a", "b"] | None,
            "point": Point,
        },
    )

    contract = read_contract(adapter.format(Everything, [], {"message": "m", "items": []})[0]["content"])
    assert contract is not None
    assert contract.inputs == ("message", "items")
    assert contract.objective == "Do it.\n\nSecond paragraph: [[ ## team ## ]] and {braces}."
    assert (adapter is ADAPTERS[1]) == contract.as_json
    assert [(output.name, output.kind, output.labels) for output in contract.outputs] == [
        ("reasoning", "text", ()),
        ("team", "label", ("it's", "a; b", "c)", 'say "x"')),
        ("level", "label", (1, 2)),
        ("ok", "label", (True, False)),
        ("tone", "label", ("warm", "cold")),
        ("count", "int", ()),
        ("share", "float", ()),
        ("maybe", "label", ("a", "b")),
        ("point", "json", ()),
    ]
    assert contract.outputs[0].description == "why\nand how"
    assert {"x", "label"} == set(contract.outputs[-1].schema["required"])


TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, st.text(max_size=40)),
    (int, st.integers(-1000, 1000)),
    (float, st.floats(-100, 100)),
    (bool, st.booleans()),
    (Literal["yes", "no", "not sure"], st.sampled_from(["yes", "no", "not sure"])),
    (Literal["it's", "a; b", "c)"], st.sampled_from(["it's", "a; b", "c)"])),
    (Literal[1, 2, 3], st.sampled_from([1, 2, 3])),
    (Tone, st.sampled_from(Tone)),
    (list[str], st.lists(st.text(max_size=20), max_size=3)),
    (list[int], st.lists(st.integers(-9, 9), max_size=3)),
    (list[Literal["a", "b"]], st.lists(st.sampled_from(["a", "b"]), max_size=2)),
    (dict[str, int], st.dictionaries(st.text(max_size=5), st.integers(-9, 9), max_size=2)),
    (Optional[str], st.none() | st.text(max_size=20)),  # noqa: UP045 (both spellings occur)
    (int | None, st.none() | st.integers(-9, 9)),
    (Literal["a", "b"] | None, st.sampled_from(["a", "b"])),
    (Point, st.builds(Point, x=st.integers(-9, 9), label=st.text(max_size=9))),
    (list[Point], st.lists(st.builds(Point, x=st.integers(-9, 9), label=st.text(max_size=9)), max_size=2)),
]


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_reply_parses_with_dspys_own_parsers(data: st.DataObject) -> None:
    names = ["answer", "reasoning", "title", "picked", "query"]
    outputs = {name: data.draw(st.sampled_from(TYPES), label=name) for name in names[: data.draw(st.integers(1, 5))]}
    inputs = {name: data.draw(st.sampled_from(TYPES), label=name) for name in ("text", "question")}
    fields: dict[str, Any] = {name: (kind, dspy.InputField()) for name, (kind, _) in inputs.items()}
    fields |= {name: (kind, dspy.OutputField()) for name, (kind, _) in outputs.items()}
    signature = dspy.Signature(fields, data.draw(st.text(min_size=1, max_size=60)))
    demos = []
    for _ in range(data.draw(st.integers(0, 3))):
        kept = [name for name in fields if data.draw(st.booleans())]
        demos.append({name: data.draw({**inputs, **outputs}[name][1]) for name in kept})
    given_inputs = {name: data.draw(values) for name, (_, values) in inputs.items()}
    for adapter in ADAPTERS:
        parsed = ask(adapter, signature, given_inputs, demos)
        assert set(outputs) == set(parsed)


@both
def test_without_demonstrations_it_follows_the_instruction(adapter: Any) -> None:
    assert ask(adapter, Triage, {"message": "my plastic was swallowed by the machine"})["team"] == "cards"
    assert ask(adapter, Triage, {"message": "do you need a selfie of me?"})["team"] == "identity"
    assert ask(adapter, Triage, {"message": "I am waiting for a transfer"})["team"] == "transfers", "by its name"
    assert ask(adapter, Triage, {"message": "zzz"})["team"] == "cards", "nothing fits: the contract's first"


def test_the_instruction_is_read_in_several_ways() -> None:
    names = ["cards", "fees", "other"]
    lines = "- cards: lost or stolen\n2. `fees` = charges and costs\nAnswer `other` if it is small talk."
    assert [
        text.strip() if name != "other" else "small talk" * ("small talk" in text)
        for name, text in zip(names, descriptions(names, [lines]), strict=True)
    ] == ["lost or stolen", "charges and costs", "small talk"]
    inline = "cards means stolen plastic, fees means charges and other means the rest"
    about = descriptions(names, [inline])
    assert "stolen" in about[0] and "charges" in about[1] and "rest" in about[2]
    assert "charges" not in about[0] and "stolen" not in about[1]


NONSENSE = ("blick", "dax", "wug", "toma")
TOPICS = (
    ("the machine ate my card", "my card is broken", "card lost in the street"),
    ("where is my parcel", "the parcel has not arrived", "parcel delayed again"),
    ("reset my password", "password forgotten", "the password page fails"),
    ("I want a refund", "refund for the shoes please", "refund not received"),
)
QUERIES = ("card swallowed by machine", "is the parcel delayed", "forgot password", "refund please")


@both
def test_permuting_the_labels_of_demonstrations_permutes_the_answers(adapter: Any) -> None:
    Sort = signature("Sort it.", {"text": str}, {"kind": one_of(NONSENSE)})

    lm = Embedded()
    for order in itertools.permutations(range(4)):
        demos = [{"text": text, "kind": NONSENSE[order[topic]]} for topic, texts in enumerate(TOPICS) for text in texts]
        answers = [ask(adapter, Sort, {"text": query}, demos, lm)["kind"] for query in QUERIES]
        assert [NONSENSE[label] for label in order] == answers


def test_the_order_of_demonstrations_decides_nothing() -> None:
    Sort = signature("Sort it.", {"text": str}, {"reasoning": str, "kind": one_of(NONSENSE), "note": str})

    demos = [
        {"text": text, "kind": NONSENSE[topic], "note": f"about {text.split()[-1]}"}
        for topic, texts in enumerate(TOPICS)
        for text in texts
    ]
    replies = set()
    for seed in range(10):
        shuffled = random.Random(seed).sample(demos, len(demos))
        replies.add(json.dumps(ask(ADAPTERS[0], Sort, {"text": QUERIES[0]}, shuffled)))
    assert len(replies) == 1


@both
def test_incomplete_demonstrations_teach_what_they_have(adapter: Any) -> None:
    Two = signature("Sort it.", {"text": str}, {"kind": one_of(NONSENSE), "urgent": bool})

    demos: list[dict[str, Any]] = [
        {"text": "the card is broken", "kind": "wug"},
        {"text": "parcel late", "urgent": True},
        {"text": "the card is broken", "kind": "wug", "urgent": False},
        {"text": "hello there parcel", "kind": "dax"},
    ]
    parsed = ask(adapter, Two, {"text": "my parcel is late"}, demos)
    assert parsed == {"kind": "dax", "urgent": True}


@both
def test_reasoning_names_the_evidence(adapter: Any) -> None:
    signature = Triage.prepend("reasoning", dspy.OutputField(desc="think"), str)
    demos = [{"message": "my card was eaten", "reasoning": "Because.", "team": "cards"}]
    parsed = ask(adapter, signature, {"message": "the card was eaten again"}, demos)
    assert parsed["team"] == "cards"
    assert "'my card was eaten'" in parsed["reasoning"] and "similarity" in parsed["reasoning"]
    assert "name" in ask(adapter, signature, {"message": "a transfer"})["reasoning"]


@both
def test_free_text_follows_what_the_demonstrations_show(adapter: Any) -> None:
    qa = dspy.Signature("context: str, question: str -> answer: str")
    demos = [
        {"context": "Rome is old. Paris is in France.", "question": "Where is Paris?", "answer": "France"},
        {"context": "Bo Li wrote Sun. He is dead.", "question": "Who wrote Sun?", "answer": "Bo Li"},
    ]
    context = "The sea is wide. The bridge was designed by Ada Stone. Nobody knows the price."
    assert (
        ask(adapter, qa, {"context": context, "question": "Who designed the bridge?"}, demos)["answer"] == "Ada Stone"
    )

    copied = dspy.Signature("text: str -> reply: str")
    shown = [{"text": "card lost", "reply": "Block it."}, {"text": "parcel late", "reply": "Wait a day."}]
    assert ask(adapter, copied, {"text": "my parcel is late"}, shown)["reply"] == "Wait a day."

    repeated = dspy.Signature("text: str -> mood: str")
    moods = [
        {"text": text, "mood": mood}
        for mood, texts in (("glad", ["great stuff", "great fun", "so great"]), ("sad", ["awful day", "awful food"]))
        for text in texts
    ]
    assert ask(adapter, repeated, {"text": "an awful film"}, moods)["mood"] == "sad", "free text used as a label"


@both
def test_numbers_and_lists(adapter: Any) -> None:
    count = dspy.Signature("text: str -> total: int")
    assert ask(adapter, count, {"text": "It was 3 times 1,250"})["total"] == 1250
    assert ask(adapter, count, {"text": "none"}, [{"text": "no number", "total": 7}])["total"] == 7

    pick = dspy.Signature("question: str, paragraphs: list[str] -> titles: list[str]")
    paragraphs = ["Oslo | A city in Norway", "Ada Stone | A designer of bridges", "Tea | A drink", "Bo | A bridge"]
    demos = [
        {"question": "Where is Oslo?", "paragraphs": paragraphs, "titles": ["Oslo"]},
        {"question": "What is tea?", "paragraphs": paragraphs, "titles": ["Tea"]},
    ]
    given_inputs = {"question": "Which bridges did Ada Stone build?", "paragraphs": paragraphs}
    assert ask(adapter, pick, given_inputs, demos)["titles"] == ["Ada Stone"]


def test_sampling_changes_nothing_and_usage_is_counted() -> None:
    plain = request(ADAPTERS[0], Triage, {"message": "card"})
    other = Request("embedded", plain.messages, {"temperature": 1.0, "max_tokens": 3}, replicate=4)
    lm = Embedded(memory=1)
    first = lm.complete(plain)
    assert first == lm.complete(other) == Embedded().complete(plain)
    assert first.usage.prompt_tokens > 50 and first.usage.completion_tokens > 5
    assert (lm.name, lm.endpoint) == ("embedded", "embedded")
    lm.close()
    lm.close()
    assert first == lm.complete(plain)


@pytest.mark.parametrize(
    "messages",
    [
        (),
        ({"role": "user", "content": "hello"},),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url"}]},),
        ({"role": "user", "content": None},),
        ({"role": "system", "content": "All interactions will be structured in the following way"},),
    ],
)
def test_a_prompt_in_no_known_form_is_answered_too(messages: Any) -> None:
    assert Embedded().complete(Request("embedded", messages)).text


PURITY = """
import hashlib, json, sys
from vitrify.programs.embedded import Embedded
from vitrify.programs.lm import Request
requests = [Request("embedded", tuple(messages)) for messages in json.load(sys.stdin)]
lm = Embedded()
lm.complete(requests[0])
events = []
watched = ("open", "import", "socket", "os", "subprocess")
sys.addaudithook(lambda name, args: events.append(name) if name.split(".")[0] in watched else None)
texts = [lm.complete(request).text for request in requests]
events = sorted(set(events))
print(hashlib.sha256(json.dumps(texts).encode()).hexdigest(), events, "dspy" in sys.modules, "aiohttp" in sys.modules)
"""


def test_it_is_a_pure_function_in_every_process_and_touches_nothing() -> None:
    rng = random.Random(0)
    requests = []
    for adapter in ADAPTERS:
        for _ in range(20):
            demos = [
                {"message": " ".join(rng.choices(QUERIES, k=2)), "team": rng.choice(["cards", "transfers"])}
                for _ in range(rng.randrange(5))
            ]
            signature = Triage.append("note", dspy.OutputField(), str)
            requests.append(request(adapter, signature, {"message": rng.choice(QUERIES)}, demos))
        requests.append(request(adapter, Propose, {"examples": examples(20), "tip": "Be simple."}))
    text = json.dumps([[dict(message) for message in item.messages] for item in requests])
    printed = set()
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", PURITY], input=text, capture_output=True, text=True, env=environment, check=True
        )
        printed.add(done.stdout.strip())
    here = hashlib.sha256(json.dumps([Embedded().complete(item).text for item in requests]).encode()).hexdigest()
    assert {f"{here} [] False False"} == printed


def test_many_threads_get_the_answers_of_one() -> None:
    requests = [request(ADAPTERS[0], Triage, {"message": query}) for query in QUERIES] * 20
    expected = [Embedded().complete(item).text for item in requests]
    lm, found = Embedded(memory=2), {}

    def work(offset: int) -> None:
        found[offset] = [lm.complete(item).text for item in requests]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(expected == texts for texts in found.values()) and len(found) == 8


Propose = signature(
    "Write an instruction that solves the task better.", {"examples": str, "tip": str}, {"proposed_instruction": str}
)


def examples(count: int) -> str:
    rows = [(text, NONSENSE[topic]) for topic, texts in enumerate(TOPICS) for text in texts]
    return "\n\n".join(f"Text: {text}\nKind: {kind}" for text, kind in rows[:count])


@both
def test_an_instruction_is_written_from_the_examples(adapter: Any) -> None:
    written = ask(adapter, Propose, {"examples": examples(12), "tip": ""})["proposed_instruction"]
    entries = dict(line[2:].split(": ", 1) for line in written.splitlines() if line.startswith("- "))
    assert set(NONSENSE) == set(entries)
    assert "card" in entries["blick"] and "parcel" in entries["dax"] and "password" in entries["wug"]

    Sort = signature("", {"text": str}, {"kind": one_of(NONSENSE)})

    better = Sort.with_instructions(written)
    assert list(NONSENSE) == [ask(adapter, better, {"text": query})["kind"] for query in QUERIES]
    tips = ["", "Be brief.", "Keep it clear and concise.", "Include a persona.", "Seed 4", "Seed 5", "high stakes"]
    texts = {ask(adapter, Propose, {"examples": examples(12), "tip": tip})["proposed_instruction"] for tip in tips}
    assert len(texts) >= 4, "other prompts, other instructions"


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(json.dumps({"text": text, "kind": "dax"}) for text in TOPICS[1])
        + "\n"
        + "\n".join(json.dumps({"text": text, "kind": "wug"}) for text in TOPICS[2]),
        "\n".join(f"- {text} -> {kind}" for kind, n in (("dax", 1), ("wug", 2)) for text in TOPICS[n]),
        "\n\n".join(
            f"[[ ## text ## ]]\n{text}\n\n[[ ## kind ## ]]\n{kind}"
            for kind, n in (("dax", 1), ("wug", 2))
            for text in TOPICS[n]
        ),
        "\n\n".join(
            f"1. Text: {text}\n   Predicted: toma\n   Expected: {kind}\n   Score: 0"
            for kind, n in (("dax", 1), ("wug", 2))
            for text in TOPICS[n]
        ),
    ],
    ids=["json lines", "arrows", "markers", "failures"],
)
def test_examples_are_found_however_they_are_written(text: str) -> None:
    written = ask(ADAPTERS[0], Propose, {"examples": text, "tip": ""})["proposed_instruction"]
    lines = {line.split(":")[0]: line for line in written.splitlines() if line.startswith("- ")}
    assert {"- dax", "- wug"} == set(lines)
    assert "parcel" in lines["- dax"] and "password" in lines["- wug"] and "toma" not in written


def banking(count: int, seed: int = 0) -> tuple[Any, list[dict[str, str]], list[dict[str, str]]]:
    if not (DATA / "banking77_train.jsonl").exists():
        pytest.skip(f"no data at {DATA}; set VITRIFY_DATA")
    train, test = (
        [json.loads(line) for line in (DATA / f"banking77_{part}.jsonl").read_text().splitlines()]
        for part in ("train", "test")
    )
    labels = tuple(sorted({row["intent"] for row in train}))

    Banking = signature("Classify the customer's message.", {"message": str}, {"intent": one_of(labels)})

    rng = random.Random(seed)
    by_label: dict[str, list[dict[str, str]]] = {}
    for row in rng.sample(train, len(train)):
        by_label.setdefault(row["intent"], []).append(row)
    demos = [row for label in labels for row in by_label[label][:count]]
    return Banking, rng.sample(demos, len(demos)), rng.sample(test, 300)


@pytest.mark.parametrize(("per_label", "least", "most_ms"), [(0, 0.35, 3.0), (1, 0.43, 5.0), (16, 0.64, 15.0)])
def test_it_learns_a_real_task_and_is_fast(per_label: int, least: float, most_ms: float) -> None:
    signature, demos, test = banking(per_label)
    lm = Embedded()
    static = list(request(ADAPTERS[0], signature, {"message": "@@"}, demos).messages)
    right, times = 0, []
    for row in test:
        last = {"role": "user", "content": str(static[-1]["content"]).replace("@@", row["message"])}
        item = Request("embedded", (*static[:-1], last))
        begun = time.perf_counter()
        reply = lm.complete(item)
        times.append(time.perf_counter() - begun)
        right += ADAPTERS[0].parse(signature, reply.text)["intent"] == row["intent"]
    assert right / len(test) >= least
    assert sorted(times)[len(times) // 2] * 1e3 < most_ms

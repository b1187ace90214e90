"""A sealed program does what the bound one does: the same requests in order, the same outputs, the same failures."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.compiler.emit import plans_of, program_of
from vitrify.programs.artifact import (
    Artifact,
    CapabilitiesRecord,
    ClassProgram,
    Content,
    EvidenceRecord,
    InputRecord,
    ModelRecord,
    PredictorRecord,
    ProvenanceRecord,
    SelectionRecord,
    read_artifact,
)
from vitrify.programs.bind import bind
from vitrify.programs.bridge import EngineLM
from vitrify.programs.candidate import Candidate
from vitrify.programs.exact import exact
from vitrify.programs.lm import Capabilities, Reply, Request, Usage
from vitrify.programs.models import Model
from vitrify.programs.program import ProgramSpec, lower_program
from vitrify.programs.runtime import Unreadable, run_artifact
from vitrify.signatures.errors import RequestError

from tests.sealing import load_source
from tests.strategies import profile

KINDS: Mapping[str, Any] = {
    "str": ["billing", "a\nb", "{x}", "é 🙂", "[[ ## no"], "int": [0, -7, 12], "float": [1.0, 0.5],
    "bool": [True, False], 'Literal["u", "v"]': ["u", "v"],
    "list[str]": [["x", "y"], ["z", "{}"]], "dict[str, int]": [{"b": 1, "a": 2}],
    "date": ["2024-02-29"], "Item": [{"name": "n", "tags": ["t"], "price": 1.0}], "Color": ["red"],
    "Optional[str]": ["x", None],
}  # fmt: skip
TEXTUAL = ("str", "int", "float", "bool", 'Literal["u", "v"]', "date")
HEAD = """
import dspy
import enum
from typing import Any, Literal, Optional
from datetime import date
import pydantic

class Color(enum.Enum):
    RED = "red"

class Item(pydantic.BaseModel):
    name: str
    tags: list[str]
    price: float

"""


class Scripted:
    """An LM that gives the same replies in the same order, and keeps what it was asked."""

    name = "openai/scripted"
    endpoint = "nowhere"

    def __init__(self, replies: list[str | None], capabilities: Capabilities) -> None:
        self.replies = replies
        self.capabilities = capabilities
        self.requests: list[Request] = []

    def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        text = self.replies[(len(self.requests) - 1) % len(self.replies)]
        return Reply(answered(request) if text is None else text, Usage(3, 2), self.name)

    async def acomplete(self, request: Request) -> Reply:
        await asyncio.sleep(0)
        return self.complete(request)

    def close(self) -> None:
        pass


FIELDS: dict[str, Any] = {}


def answered(request: Request) -> str:
    """Return a reply that gives every field asked for a value of its type, by its name `<kind index>_...`."""
    asked = str(request.messages[-1]["content"])
    asked = asked[asked.rindex("Respond with") :]
    names = [n for n in re.findall(r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`", asked) if n != "completed"]
    values = {name: FIELDS.get(name, "because") for name in names}
    if asked.startswith("Respond with a JSON object"):
        return json.dumps(values)
    parts = [f"[[ ## {n} ## ]]\n{v if isinstance(v, str) else json.dumps(v)}" for n, v in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def frozen(program: Any, spec: ProgramSpec, candidate: Candidate, capabilities: Capabilities) -> Artifact:
    """Return an artifact of this program and candidate, with made-up evidence."""
    records = []
    for item in spec.predictors:
        params = candidate[item.path]
        plan, second = plans_of(item, candidate, program)
        as_json: Any = [None if p is None else p.to_json() for p in (plan, second, item.signature)]
        records.append(
            PredictorRecord(
                path=item.path, aliases=list(item.aliases), signature=as_json[2], reason=None,
                instruction=params.instruction, demos=[{k: exact(v) for k, v in d.items()} for d in params.demos],
                format=params.format, decoding=dict(params.decoding), plan=as_json[0], second_plan=as_json[1],
                methods={}, rows=[],
            )
        )  # fmt: skip
    able = CapabilitiesRecord(**{k: getattr(capabilities, k) for k in CapabilitiesRecord.kinds})
    content = Content(
        format="vitrify/1", name=spec.name, program=program_of(spec, program, {}, records),
        inputs=[InputRecord(name=item.name, required=item.required) for item in spec.inputs], predictors=records,
        model=ModelRecord(name=Scripted.name, decoding={"max_tokens": 99}, capabilities=able, adapter="ChatAdapter"),
        evidence=EvidenceRecord(
            improved=False, baseline=0, compiled=0, difference=0, interval=(0, 0), level=0.95, p_value=1, n=1,
            method="none", sealed=False, certified=True,
        ),
        selection=SelectionRecord(
            shipped="baseline", reason="", probability=0, estimate=0, interval=(0, 0), trials=0, evaluations=0, slots={}
        ),
        provenance=ProvenanceRecord(
            versions={}, seed=0, strategy="", metric="", metric_sha256=None, data_sha256="0" * 64, rows={}, calls=0,
            prompt_tokens=0, completion_tokens=0, dollars=None, malformed=0, reparsed=0,
        ),
        canaries=[], notes=[], reproducible=True, reproducible_reason=None,
    )  # fmt: skip
    return Artifact.seal(content)


@st.composite
def sources(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return the source of a program P of one to four predictors, wired at random, and values for its output fields."""
    fields: dict[str, Any] = {}
    signatures, init, body = [], [], []
    known = [("q", "Any"), ("k", "Any"), ('f"<{q}>"', "str"), ("self.prefix", "str"), ("1.0", "float"), ("-3", "int")]
    known += [('{"b": k, "a": [q, None]}', "dict"), ("(q, 2)", "tuple"), ("self.pair", "tuple")]
    count = draw(st.integers(1, 4))
    for index in range(count):
        inputs = [f"i{index}_{n}" for n in range(draw(st.integers(1, 3)))]
        kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3))
        outputs = [(f"o{index}_{n}", kind) for n, kind in enumerate(kinds)]
        fields.update({name: draw(st.sampled_from(KINDS[kind])) for name, kind in outputs})
        lines = [
            f"    {name}: {draw(st.sampled_from(['str', 'Any', 'list[str]']))} = dspy.InputField()" for name in inputs
        ]
        lines += [f"    {name}: {kind} = dspy.OutputField()" for name, kind in outputs]
        signatures.append(f"class S{index}(dspy.Signature):\n    '''Do {{{index}}}.'''\n" + "\n".join(lines) + "\n")
        maker = draw(st.sampled_from(["dspy.Predict", "dspy.ChainOfThought"]))
        init.append(f"        self.p{index} = {maker}(S{index}, temperature={draw(st.sampled_from([0.5, 1.0]))})")
        given_inputs = draw(st.lists(st.sampled_from(inputs), min_size=1, unique=True))
        arguments = ", ".join(f"{name}={draw(st.sampled_from(known))[0]}" for name in given_inputs)
        body.append(f"        r{index} = self.p{index}({arguments})")
        for name, kind in outputs:
            known.append((f"r{index}.{name}", kind))
            if kind in TEXTUAL:
                known.append((f'f"{{r{index}.{name}}}, {{q}}!"', "str"))
            if kind == "list[str]":
                known.append((f'f"{{r{index}.{name}[-1]}}"', "str"))
            if kind == "Item":
                known.append((f'[r{index}.{name}.price, r{index}["{name}"].tags[0]]', "list"))
    chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
    result = ", ".join(f"x{n}={expression}" for n, (expression, _) in enumerate(chosen))
    last = draw(st.sampled_from([f"dspy.Prediction({result})", f"r{count - 1}"]))
    source = (
        HEAD + "\n".join(signatures) + "\nclass P(dspy.Module):\n    def __init__(self):\n        super().__init__()\n"
        + '        self.prefix = "Hi {q} "\n        self.pair = ("a", (1.0, 2))\n' + "\n".join(init)
        + "\n    def forward(self, q: str, k=2.0):\n" + "\n".join(body) + f"\n        return {last}\n"
    )  # fmt: skip
    return source, fields


replies = st.lists(
    st.sampled_from([None, None, None, None, "", "nonsense", "{", "[[ ## o0_0 ## ]]\nx"]), min_size=1, max_size=4
)
values = st.sampled_from(["my card is gone", "", "a\nb", "{x}", "é 🙂", "[[ ## q ## ]]"])
able = st.builds(Capabilities, response_format=st.booleans(), response_schema=st.booleans())


def outcome(run: Any) -> Any:
    """Return the outputs as they print, or that none could be read or no prompt written."""
    try:
        return {name: repr(value).replace("<Color.RED: 'red'>", "RED") for name, value in run().items()}
    except (Unreadable, dspy.utils.exceptions.AdapterParseError):
        return "unreadable"
    except (RequestError, TypeError) as error:  # a list in a `str` field whose items aren't text
        assert isinstance(error, TypeError) or isinstance(error.__cause__, TypeError)
        return "unwritable"


def both(
    source: str, fields: dict[str, Any], answers: list[str | None], inputs: dict[str, Any], able: Capabilities,
    folder: Path, *, formats: Any = (), demos: Any = (), use_async: bool = False,
) -> tuple[Any, Any, Scripted, Scripted]:  # fmt: skip
    """Run a program sealed and bound; return both outcomes and both models."""
    FIELDS.clear()
    FIELDS.update(fields)
    program = load_source(source, folder).P()
    spec = lower_program(program)
    candidate = spec.baseline
    for path, format in zip(candidate.params, formats, strict=False):
        candidate = candidate.with_params(path, format=format, demos=tuple(MappingProxyType(d) for d in demos))
    artifact = frozen(program, spec, candidate, able)
    assert not isinstance(artifact.program, ClassProgram), artifact.program.reason
    artifact = read_artifact(artifact.save(folder / "p.json"))
    mine, theirs = Scripted(answers, able), Scripted(answers, able)
    sealed = run_artifact(artifact, Model(mine, artifact.model.decoding))
    bound = bind(program, spec, candidate)
    first = outcome((lambda: asyncio.run(sealed.acall(**inputs))) if use_async else lambda: sealed(**inputs))
    with dspy.context(lm=EngineLM(theirs, **artifact.model.decoding)):
        run = dspy.asyncify(bound)
        second = outcome((lambda: asyncio.run(run(**inputs))) if use_async else lambda: bound(**inputs))
    return first, second, mine, theirs


@given(
    sources(), replies, values, st.one_of(st.none(), values, st.just(3)), able,
    st.lists(st.sampled_from(["chat", "json"]), min_size=4, max_size=4), st.booleans(),
)  # fmt: skip
@profile(120)
def test_random_programs(
    tmp_path_factory: Any, drawn: Any, answers: Any, q: Any, k: Any, able: Capabilities, formats: Any, use_async: bool
) -> None:
    source, fields = drawn
    inputs = {"q": q} if k is None else {"q": q, "k": k}
    folder = tmp_path_factory.mktemp("program")
    first, second, mine, theirs = both(
        source, fields, answers, inputs, able, folder, formats=formats, use_async=use_async
    )
    assert [r.messages for r in theirs.requests] == [r.messages for r in mine.requests]
    assert [dict(r.params) for r in theirs.requests] == [dict(r.params) for r in mine.requests]
    assert theirs.requests == mine.requests
    assert second == first


CHAIN = (
    HEAD
    + """
class P(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a = dspy.Predict("q -> one")
        self.b = dspy.Predict("one -> two")
    def forward(self, q):
        return dspy.Prediction(two=self.b(one=self.a(q=q).one).two)
"""
)


@pytest.mark.parametrize("use_async", [False, True])
def test_a_malformed_reply_gives_one_more_request_as_json_and_then_a_failure(tmp_path: Path, use_async: bool) -> None:
    fields = {"one": "1", "two": "2"}
    schema = Capabilities(response_format=True)
    cases: list[tuple[list[str | None], Any, list[bool]]] = [
        (["oops", None, None], {"two": "'2'"}, [False, True, False]),
        ([None, "oops", None], {"two": "'2'"}, [False, False, True]),
        (["oops", "oops"], "unreadable", [False, True]),
        ([None, "oops", "oops"], "unreadable", [False, False, True]),
    ]
    for answers, expected, asked in cases:
        first, second, mine, theirs = both(CHAIN, fields, answers, {"q": "x"}, schema, tmp_path, use_async=use_async)
        assert (expected, expected) == (first, second)
        assert theirs.requests == mine.requests
        assert asked == ["response_format" in request.params for request in mine.requests]


def test_demonstrations_with_whole_floats_render_alike_out_of_the_file(tmp_path: Path) -> None:
    demos = [{"q": {"z": 1.0, "a": 2}, "one": "x", "two": "y"}, {"q": 3.0, "one": "1", "two": 2**60}]
    first, second, mine, theirs = both(
        CHAIN,
        {"one": "1", "two": "2"},
        [None],
        {"q": "x"},
        Capabilities(),
        tmp_path,
        formats=("chat", "chat"),
        demos=demos,
    )
    assert first == second
    assert theirs.requests == mine.requests
    assert '{"z": 1.0, "a": 2}' in str(mine.requests[0].messages)

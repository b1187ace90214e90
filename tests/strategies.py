"""Hypothesis strategies for signatures: types of the whole grammar, values, demonstrations, inputs, replies."""

import enum
import json
import os
import string
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional, Union, cast, get_args, get_origin

import pydantic
import pydantic_core
from hypothesis import HealthCheck, reject, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, Field

# Stable runs by default; VITRIFY_EXAMPLES=20 multiplies the cases and draws them anew.
SCALE = float(os.environ.get("VITRIFY_EXAMPLES", "1"))


def profile(examples: int) -> settings:
    """Return settings for about `examples` cases, the same ones in every run unless VITRIFY_EXAMPLES is set."""
    return settings(
        max_examples=max(1, int(examples * SCALE)),
        deadline=None,
        derandomize="VITRIFY_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Text ----------------------------------------------------------------------------------------------------------------

NASTY = [
    "", " ", "\n", "{", "}", "{x}", "{0}", "%s", "«", "»", "a\nb", "«a»\nb", "[[ ## answer ## ]]",
    "[[ ## completed ## ]]", "`", '"', "'", "'\"", "\\n", "\t", "\u2028", "\x0b", "\x1c", "\x85", "é", "日本語", "🙂",
    "\U0010ffff", "null", "None", "NaN", "true", "True", "1", "1.0", "-0", "1e5", "[]", "[1, 2]", "{}", '{"a": 1}',
    "```json\n{}\n```", "  indented", "trailing  ", "\n\nboth\n\n", "${text}", "Literal[a]", "str[a]", "# note",
    "a\r\nb", "\x00", "\x7f", "a\u0301", "\ufeff",
]  # fmt: skip
MARKED = [
    "<<CUSTOM-TYPE-START-IDENTIFIER>>",
    '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url"}]<<CUSTOM-TYPE-END-IDENTIFIER>>',
    "\ud800",
]
texts = st.one_of(
    st.sampled_from(NASTY), st.text(max_size=12), st.lists(st.sampled_from(NASTY), max_size=4).map("".join)
)
words = st.text(string.ascii_letters, min_size=1, max_size=6)
numbers = st.one_of(st.integers(-3, 3), st.integers(), st.sampled_from([2**53, 2**63, 10**30, -(10**20)]))
floats = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1.5, 1e21, 1e-7, 1e300]), st.floats())
finite = st.floats(allow_nan=False, allow_infinity=False)
dates = st.dates(date(1, 1, 1), date(9999, 12, 31))
times = st.one_of(st.datetimes(), st.datetimes(timezones=st.timezones()))

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, finite, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)

# Types ---------------------------------------------------------------------------------------------------------------

ENUM_NAMES = ["Color", "Level", "Kind"]
MODEL_NAMES = ["Alpha", "Beta", "Gamma", "Delta", "Node", "Item_2"]


@st.composite
def enums(draw: st.DrawFn) -> Any:
    """A fresh enumeration, of any base, with aliases and a docstring now and then."""
    base = draw(st.sampled_from([(enum.Enum,), (str, enum.Enum), (int, enum.Enum), (enum.StrEnum,), (enum.IntEnum,)]))
    textual = base[0] in (str, enum.StrEnum)
    value = texts if textual else st.integers(-5, 5) if len(base) == 2 or base[0] is enum.IntEnum else st.one_of(
        texts, st.integers(-5, 5), st.booleans(), st.none()
    )  # fmt: skip
    names = draw(st.lists(st.sampled_from(["A", "B", "C", "low", "High"]), min_size=1, max_size=4, unique=True))
    members = [(name, draw(value)) for name in names]
    name = draw(st.sampled_from(ENUM_NAMES))
    make: Any = base[-1]
    kind: Any = make(name, members, **({"type": base[0]} if len(base) == 2 else {}))
    kind.__doc__ = draw(st.one_of(st.none(), texts))
    return kind


literals = st.lists(st.one_of(words, texts, st.integers(-5, 5), st.booleans(), st.none()), min_size=1, max_size=4).map(
    lambda given: Literal[tuple(given)]
)

scalars = st.sampled_from([str, bool, int, float, type(None), Any, date, datetime, list, dict, tuple])

bounded = st.one_of(
    st.builds(lambda n: Annotated[int, Field(gt=n)], st.integers(-5, 5)),
    st.builds(lambda n, d: Annotated[int, Field(le=n, description=d)], st.integers(-5, 5), words),
    st.builds(lambda n: Annotated[float, Field(ge=n)], st.sampled_from([0, 0.0, 1.5])),
    st.builds(lambda n: Annotated[str, Field(min_length=n)], st.integers(0, 3)),
    st.builds(lambda n: Annotated[list[int], Field(max_length=n)], st.integers(0, 3)),
    st.just(Annotated[str, pydantic.StringConstraints(strip_whitespace=True, to_upper=True)]),
    st.just(Annotated[str, Field(pattern="^a+$", examples=["aa"])]),
    st.just(Annotated[int, pydantic.Strict()]),
    st.just(pydantic.conint(gt=1, lt=9)),
    st.just(pydantic.constr(max_length=3)),
)


@st.composite
def models(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    """A fresh model: constraints, descriptions, defaults, aliases, docstrings, extra; recursive now and then."""
    name = draw(st.sampled_from(MODEL_NAMES))
    fields: dict[str, Any] = {}
    for field in draw(
        st.lists(st.sampled_from(["a", "b", "value", "items", "label"]), min_size=1, max_size=3, unique=True)
    ):
        arguments: dict[str, Any] = {}
        annotation = draw(inner)
        if draw(st.booleans()):
            arguments["description"] = draw(texts)
        if draw(st.integers(0, 4)) == 0:
            arguments["alias"] = draw(st.sampled_from(["camelCase", "x-y", field]))
        if draw(st.integers(0, 4)) == 0:
            arguments["title"] = draw(words)
        choice = draw(st.integers(0, 5))
        if choice == 0:
            annotation, arguments["default"] = Optional[annotation], None  # noqa: UP045
        elif choice == 1:
            annotation, arguments["default_factory"] = draw(
                st.sampled_from([(list[str], list), (dict[str, int], dict), (list, list)])
            )
        elif choice == 2 and isinstance(annotation, enum.EnumMeta):
            arguments["default"] = next(iter(annotation))
        elif choice == 3:
            kinds: list[Any] = [(int, {"gt": 0, "lt": 100}), (str, {"min_length": 1}), (float, {"ge": 0.5})]
            annotation, bounds = draw(st.sampled_from(kinds))
            arguments.update(bounds)
        elif choice == 4:
            annotation, arguments["default"] = draw(
                st.sampled_from([(int, 3), (float, 1.0), (str, "x"), (bool, True), (list[int], [1])])
            )
        fields[field] = (annotation, Field(**arguments))
    settings_: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {},
                {"extra": "forbid"},
                {"extra": "allow"},
                {"populate_by_name": True},
                {"str_strip_whitespace": True},
                {"title": "T"},
            ]
        )
    )
    recursion = draw(st.integers(0, 5))
    if recursion == 0:
        fields["next"] = (Optional[name], None)  # noqa: UP045
    elif recursion == 1:
        fields["kids"] = (list[name], Field(default_factory=list))  # type: ignore[valid-type]
    model = pydantic.create_model(
        name, __config__=cast("ConfigDict", settings_), __doc__=draw(st.one_of(st.none(), texts)), **fields
    )
    model.model_rebuild(_types_namespace={name: model})
    return model


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda t: list[t]),  # type: ignore[valid-type]
        inner.map(lambda t: dict[str, t]),  # type: ignore[valid-type]
        inner.map(lambda t: dict[int, t]),  # type: ignore[valid-type]
        inner.map(lambda t: tuple[t, ...]),  # type: ignore[valid-type]
        st.lists(inner, max_size=3).map(lambda ts: tuple[tuple(ts)]),  # type: ignore[misc]
        inner.map(lambda t: Optional[t]),  # noqa: UP045
        st.lists(inner, min_size=1, max_size=3).map(lambda ts: Union[tuple(ts)]),  # noqa: UP007
        st.sampled_from([int | None, str | None, int | str, None | float, bool | list[int] | None]),
        models(inner),
        models(inner),
    )


annotations: st.SearchStrategy[Any] = st.recursive(
    st.one_of(scalars, literals, enums(), bounded), _containers, max_leaves=4
)

# Values --------------------------------------------------------------------------------------------------------------


def values(annotation: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """JSON data that the annotation mostly accepts."""
    plain: Mapping[Any, st.SearchStrategy[Any]] = {
        str: texts,
        bool: st.booleans(),
        int: numbers,
        float: st.one_of(finite, st.integers(-5, 5)),
        type(None): st.none(),
        Any: json_values,
        date: dates.map(str),
        datetime: times.map(lambda t: t.isoformat()),
        list: st.lists(json_values, max_size=3),
        dict: st.dictionaries(texts, json_values, max_size=2),
        tuple: st.lists(json_values, max_size=2),
    }
    for known, strategy in plain.items():
        if annotation is known:
            return strategy
    if isinstance(annotation, enum.EnumMeta):
        members: list[Any] = list(annotation)
        return st.sampled_from([member.value for member in members])
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is Annotated:
        return st.one_of(values(args[0], depth), st.sampled_from([2, 3, "a", "aaa", 1.5, [1]]))
    if origin is list:
        return st.lists(values(args[0], depth + 1), max_size=2)
    if origin is dict:
        keys = st.integers(-3, 3).map(str) if args[0] is int else words
        return st.dictionaries(keys, values(args[1], depth + 1), max_size=2)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return st.lists(values(args[0], depth + 1), max_size=2)
        return st.tuples(*(values(arg, depth + 1) for arg in args)).map(list)
    if args:
        return st.one_of(*(values(arg, depth + 1) for arg in args))
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return _model_values(annotation, depth)
    return json_values


@st.composite
def _model_values(draw: st.DrawFn, model: type[pydantic.BaseModel], depth: int) -> Any:
    given: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if not field.is_required() and (depth > 2 or draw(st.booleans())):
            continue
        given[field.alias or name] = draw(values(field.annotation, depth + 1)) if depth < 4 else None
    if draw(st.integers(0, 9)) == 0:
        given["surplus"] = draw(texts)
    return given


class Opaque:
    """An object pydantic has no schema for."""

    def __repr__(self) -> str:
        return "<opaque {thing}>"


class Badge(pydantic.BaseModel):
    """A model that no signature knows."""

    owner: str = Field("me", alias="ownerName")
    when: date = date(2024, 1, 2)
    level: Any = None


wild = st.one_of(
    json_values,
    texts,
    st.none(),
    floats,
    dates,
    times,
    st.lists(texts, max_size=3),
    st.lists(st.one_of(texts, st.integers(), st.lists(texts, max_size=1)), max_size=3),
    st.tuples(texts, st.integers()),
    st.sampled_from(MARKED),
    st.builds(Opaque),
    st.builds(lambda text: Badge.model_validate({"ownerName": text}), texts),
    st.builds(lambda inner: {"badge": Badge.model_validate({"level": inner}), "opaque": Opaque()}, json_values),
    enums().map(lambda kind: next(iter(kind))),
    st.sampled_from(
        [b"x", b"\xff", Decimal("1.50"), {1: "a", None: 2}, {1.5: [date(2020, 1, 1)]}, frozenset({1}), int, 1j]
    ),
)


def runtime_values(annotation: Any) -> st.SearchStrategy[Any]:
    """What a caller may give for a field: data, what pydantic makes of it, or something else entirely."""

    def validated(data: Any) -> Any:
        try:
            return pydantic.TypeAdapter(annotation).validate_python(data)
        except Exception:
            return data

    return st.one_of(values(annotation).map(validated), values(annotation), wild)


# Signatures ----------------------------------------------------------------------------------------------------------

FIELD_NAMES = ["question", "context", "text", "n", "label", "answer", "score", "camelCase", "items_2", "team"]


@st.composite
def signatures(draw: st.DrawFn, types: st.SearchStrategy[Any] = annotations) -> Any:
    """A dspy.Signature class with random fields, descriptions, constraints, defaults and instruction."""
    import dspy

    names = draw(st.permutations(FIELD_NAMES))
    inputs, outputs = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    fields: dict[str, Any] = {}
    for index, name in enumerate(names[: inputs + outputs]):
        annotation = draw(st.one_of(st.just(str), types))
        arguments: dict[str, Any] = {}
        if draw(st.booleans()):
            arguments["desc"] = draw(st.one_of(texts, st.just(f"${{{name}}}")))
        if draw(st.integers(0, 5)) == 0:
            arguments.update(draw(st.sampled_from([{"gt": 3}, {"le": 1.5, "min_length": 2}, {"max_length": 4}])))
        if draw(st.integers(0, 4)) == 0:
            arguments.update(draw(defaults(annotation)))
        make = dspy.InputField if index < inputs else dspy.OutputField
        fields[name] = (annotation, make(**arguments))
    instruction = draw(st.one_of(st.none(), texts, st.lists(texts, max_size=4).map("\n  ".join)))
    order = draw(st.permutations(list(fields)))
    try:
        return dspy.make_signature({name: fields[name] for name in order}, instruction, "Drawn")
    except (TypeError, ValueError, pydantic_core.SchemaError):
        reject()  # a constraint that pydantic refuses for this type


def defaults(annotation: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments that give a field a default, mostly one the grammar takes."""
    options = [json_values.map(lambda value: {"default": value}), st.just({"default": None})]
    options.append(st.sampled_from([{"default_factory": list}, {"default_factory": dict}]))
    if isinstance(annotation, enum.EnumMeta):
        options.append(st.sampled_from(list(annotation)).map(lambda member: {"default": member}))
    return st.one_of(*options)


@st.composite
def rows(draw: st.DrawFn, signature: Any, names: list[str]) -> dict[str, Any]:
    """Values for some of the fields, with now and then a name that isn't one."""
    row = {}
    for name in names:
        if draw(st.integers(0, 7)):
            row[name] = draw(runtime_values(signature.fields[name].annotation))
    if draw(st.integers(0, 5)) == 0:
        row["unknown"] = draw(texts)
    return row


def demos(signature: Any) -> st.SearchStrategy[list[Any]]:
    """Demonstrations: complete, partial, labelled only, without inputs or outputs; plain rows or dspy.Example."""
    import dspy

    row = rows(signature, list(signature.fields))
    return st.lists(st.one_of(row, row.map(lambda given: dspy.Example(**given))), max_size=3)


# Replies -------------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


HOSTILE = [
    "", " ", "{", "}" * 50, "{" * 99, "[" * 99, '{"a":' * 60, "[" * 2000, "{" * 400, "(" * 400, "NaN", "Infinity",
    "1" * 5000, "[[ ## answer ## ]]", "[[ ## answer ## ]] x [[ ## score ## ]] y", "  [[ ## answer ## ]] shifted",
    "\ud800", "null", "[]", '{"answer": NaN}', '{"answer": 1e999}', '{"answer": {"answer": 1}}', "``````", "\x00",
    "[{}]", '[{"answer": "a"}]', "{'answer': 'a', 'score': 1,}", '{"answer": "a"',
    'text {"answer": "a"} text {"answer": "b"}', "{{}}", '{"answer": "\\ud800"}',
]  # fmt: skip


@st.composite
def replies(draw: st.DrawFn, signature: Any) -> tuple[str, str]:
    """A format and a reply in it: well-formed, or damaged one way or another."""
    kind = draw(st.sampled_from(["chat", "json"]))
    if draw(st.integers(0, 9)) == 0:
        return kind, draw(st.one_of(st.sampled_from(HOSTILE), texts, st.text(max_size=40)))
    given: list[tuple[str, Any]] = []
    faulty = draw(st.integers(0, 2)) == 0
    for name, field in signature.output_fields.items():
        value = values(field.annotation)
        given.append((name, draw(st.one_of(value, json_values, texts) if faulty else value)))
    damage = draw(
        st.sampled_from(["none"] * 6 + ["reorder", "drop", "double", "truncate", "fence", "prose", "input", "quote"])
    )
    if damage == "reorder":
        given = draw(st.permutations(given))
    elif damage == "drop":
        given = given[draw(st.integers(0, len(given))) :]
    elif damage == "double" and given:
        given.append((given[0][0], draw(json_values)))
    elif damage == "input":
        given += [(name, draw(texts)) for name in signature.input_fields]
    text = _reply(kind, given, draw, quote=damage == "quote")
    if damage == "truncate":
        text = text[: draw(st.integers(0, len(text)))]
    elif damage == "fence":
        text = f"```{'json' if kind == 'json' else ''}\n{text}\n```"
    elif damage == "prose":
        text = f"{draw(st.one_of(words, texts))}\n{text}\n{draw(texts)}"
    return kind, text


def _reply(kind: str, given: list[tuple[str, Any]], draw: st.DrawFn, *, quote: bool) -> str:
    if kind == "json":
        body = ", ".join(
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=draw(st.booleans()))}" for name, value in given
        )
        return "{" + (body.replace('"', "'") if quote else body) + "}"
    separator = draw(st.sampled_from(["\n", "\n\n", " "]))
    parts = [f"[[ ## {name} ## ]]{separator}{repr(value) if quote else _text(value)}" for name, value in given]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])

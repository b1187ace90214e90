"""resolve_lm(): what the user named as a language model, as one."""

from typing import Any

from .plain_and_bound import OurLM  # first: it sets what DSPy reads when it is imported

import dspy  # isort: skip
import pytest
from vitrify.programs.bridge import DspyLM, EngineLM
from vitrify.programs.embedded import Embedded
from vitrify.programs.models import Model, resolve_lm
from vitrify.programs.openai import OpenAICompatible
from vitrify.signatures.errors import ModelError


def test_resolve_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert isinstance(resolve_lm("embedded").lm, Embedded)
    assert isinstance(resolve_lm("openai/gpt-4o-mini").lm, OpenAICompatible)
    mine = resolve_lm("anything at all", api_base="http://127.0.0.1:1/v1", decoding={"temperature": 0})
    assert isinstance(mine.lm, OpenAICompatible) and {"temperature": 0} == mine.decoding
    other = resolve_lm("anthropic/claude-3-5-haiku-latest", api_key="sk-secret", decoding={"max_tokens": 5})
    assert isinstance(other.lm, DspyLM) and {"max_tokens": 5} == other.decoding
    assert "secret" not in f"{other} {other.lm.endpoint} {mine.lm.endpoint}"
    assert mine is resolve_lm(mine)


@pytest.mark.parametrize(
    ("lm", "says"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        ("embeded", "did you mean `embedded`"),
        ("opnai/gpt-4o", "did you mean `openai`"),
        ("", "is `embedded`"),
        ("openai/", "got 'openai/'"),
        (None, "got NoneType"),
        (42, "got int 42"),
        (dspy.LM, "pass an instance"),
        (Embedded, "pass an instance"),
    ],
)
def test_names_that_nobody_knows(lm: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        resolve_lm(lm)


def test_resolve_objects() -> None:
    ours = OurLM()
    assert Model(ours, {"top_p": 1}) == resolve_lm(ours, decoding={"top_p": 1})
    wrapped = resolve_lm(EngineLM(ours, temperature=0.5, max_tokens=9), decoding={"max_tokens": 10})
    assert ours is wrapped.lm and {"temperature": 0.5, "max_tokens": 10} == wrapped.decoding
    theirs = resolve_lm(
        dspy.LM("openai/gpt-5", temperature=1.0, max_tokens=16000, api_key="sk-secret", headers={"a": "b"})
    )
    assert isinstance(theirs.lm, DspyLM) and {"temperature": 1.0, "max_tokens": 16000} == theirs.decoding
    # What was resolved can be used: its decoding is what an EngineLM takes.
    assert theirs.decoding.items() <= EngineLM(theirs.lm, **theirs.decoding).kwargs.items()

"""The JSON Schema: generated, committed, and of one mind with the loader."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vitrify.programs.artifact import FORMAT, parse_artifact
from vitrify.programs.embedded import Embedded
from vitrify.programs.exact import exact
from vitrify.programs.models import Model
from vitrify.programs.runtime import run_artifact
from vitrify.programs.schema import artifact_schema, schema_text
from vitrify.signatures.canonical import NotCanonical
from vitrify.signatures.errors import ArtifactError, ProgramError, VitrifyError

from tests.strategies import json_values, profile
from tests.test_artifact_malformed import NO_JSON, edits, mutated, resealed

COMMITTED = Path(__file__).parent.parent / "docs" / "artifact.schema.json"
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*/*.artifact.json"))
VALIDATOR: Any = jsonschema.Draft202012Validator(artifact_schema())


def test_the_committed_schema_is_the_generated_one() -> None:
    assert schema_text() == COMMITTED.read_text(), "run `make schema`"
    jsonschema.Draft202012Validator.check_schema(json.loads(COMMITTED.read_text()))
    assert {"const": FORMAT} == artifact_schema()["properties"]["format"]


def test_every_field_of_the_schema_is_in_the_specification() -> None:
    page = (COMMITTED.parent / "artifact.md").read_text()
    schema = artifact_schema()
    found = [schema, *schema["$defs"].values()]
    for part in found:
        for kind in (part, *part.get("oneOf", ())):
            for name in kind.get("properties", {}):
                assert f"`{name}`" in page, f"docs/artifact.md doesn't name {name}"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_validate(path: Path) -> None:
    VALIDATOR.validate(json.loads(path.read_bytes()))


def test_a_new_artifact_validates(saved: Path) -> None:
    VALIDATOR.validate(json.loads(saved.read_bytes()))


@pytest.mark.parametrize("kind", list(edits({"predictors": [{}]})))
def test_an_edit_that_the_loader_refuses_fails(saved: Path, kind: str) -> None:
    value = json.loads(saved.read_bytes())
    edits(value)[kind][0]()
    assert not VALIDATOR.is_valid(value)


@pytest.mark.parametrize("kind", NO_JSON)
def test_json_that_is_no_artifact_fails(kind: str) -> None:
    try:
        value = json.loads(NO_JSON[kind][0])
    except (ValueError, RecursionError):
        return  # no matter of a schema
    assert not VALIDATOR.is_valid(value)


@given(st.one_of(json_values, st.integers().map(float), st.floats(1e15, 1e22).map(round).map(float)))
@profile(200)
def test_every_exact_value_validates(value: Any) -> None:
    schema = artifact_schema()
    validator: Any = jsonschema.Draft202012Validator({"$ref": "#/$defs/exact", "$defs": schema["$defs"]})
    validator.validate(exact(value))


@given(st.randoms(use_true_random=False), json_values, st.sampled_from(GOLDEN))
@profile(400)
def test_what_loads_validates(generator: random.Random, strange: Any, path: Path) -> None:
    """No file is loaded that the schema refuses; mutants of every golden file are tried."""
    value = mutated(json.loads(path.read_bytes()), generator, strange)
    try:
        artifact = parse_artifact(resealed(value), "x.json")
        run_artifact(artifact, Model(Embedded()), name="x.json")
    except (NotCanonical, ArtifactError):
        return
    except ProgramError:
        return  # a class program reads no further without its class
    except VitrifyError as error:
        raise AssertionError(f"an error of another kind: {error}") from error
    VALIDATOR.validate(value)

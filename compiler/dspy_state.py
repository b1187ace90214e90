"""DSPy's own state (`Module.save`, `Module.load`) of an artifact, and the artifact of such a state."""

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ..programs.artifact import (
    Artifact,
    Content,
    EvidenceRecord,
    InputRecord,
    PredictorRecord,
    ProvenanceRecord,
    SelectionRecord,
)
from ..programs.candidate import DECODING
from ..programs.exact import from_exact
from ..programs.files import read_bounded
from ..programs.models import Model, resolve_lm
from ..programs.program import ProgramSpec, lower_program, walk
from ..programs.verify import compiled_adapter, mismatches
from ..signatures.canonical import digest
from ..signatures.errors import ArtifactError, ProgramError, RequestError
from ..signatures.prompt import Format, PromptPlan
from ..signatures.signature import SignatureSpec
from .emit import canaries_of, model_of, plans_of, predictor_of, program_of, versions

MOST_BYTES = 64 * 1024 * 1024
IMPORTED = "none: imported, nothing was measured"
"""The method of an imported artifact's evidence."""


# From an artifact ---------------------------------------------------------------------------------------------------


def state_of(artifact: Artifact, program: Any = None) -> tuple[bytes, list[str]]:
    """Return the JSON that plain DSPy's `Module.load` reads, and sentences on what such a state can't say.

    Args:
        artifact: The artifact.
        program: An instance of its program: the state is then loaded into a copy of it and compared with the artifact.
            Needed where DSPy itself runs a predictor, whose demonstrations aren't in the file.

    Raises:
        ArtifactError: If a state can't hold what the artifact does, or doesn't bring it back.
    """
    formats = {record.format for record in artifact.predictors if record.plan is not None}
    if len(formats) > 1:
        listed = ", ".join(f"{record.path} {record.format}" for record in artifact.predictors)
        raise ArtifactError(
            f"{artifact.name} has predictors of both reply formats ({listed}): `DSPy has one adapter for a program`; "
            "compile without --formats, or run it with vitrify.load."
        )
    bare = [record.path for record in artifact.predictors if record.plan is None]
    if bare and program is None:
        raise ArtifactError(
            f"{artifact.name} has a predictor that DSPy itself runs, {bare[0]}, and what it shows isn't in the file: "
            "name the program with --program."
        )
    state = _from_file(artifact) if program is None else _of_program(artifact, program)
    recorded = artifact.provenance.versions.get("dspy", "unknown")
    state["metadata"] = {"dependency_versions": {} if recorded == "unknown" else {"dspy": recorded}}
    data = (json.dumps(state, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    _check_readable(data, state, artifact.name)
    if program is not None:
        _check_brought_back(artifact, program, data)
    return data, _left_out(artifact, formats)


def _from_file(artifact: Artifact) -> dict[str, Any]:
    """Return the predictors under the names that DSPy will look for, as far as the paths tell."""
    state: dict[str, Any] = {}
    for record in artifact.predictors:
        # DSPy's `named_parameters` doesn't look into a list in a dict.
        paths = [path for path in (record.path, *record.aliases) if "][" not in path]
        if not paths:
            raise ArtifactError(
                f"{record.path} lies in a container inside a container: `DSPy's state has predictors that are "
                "attributes, or in a list or dict that is one`; run the artifact with vitrify.load."
            )
        for path in paths:
            # A number may be a list's index or a dictionary's key, and a key that nobody looks for does no harm.
            for name in (path, re.sub(r"\[(\d+)\]", r"['\1']", path), re.sub(r'\["(.*?)"\]', r"['\1']", path)):
                state[name] = _dumped(record)
    return state


def _of_program(artifact: Artifact, program: Any) -> dict[str, Any]:
    """Return the predictors that DSPy finds in the program, under its own names; a check tells what is missing."""
    names = {id(predictor): name for name, predictor in program.named_parameters()}
    located = {item.path: item.predictor for item in walk(program)}
    state: dict[str, Any] = {}
    for record in artifact.predictors:
        predictor = located.get(record.path)
        name = record.path if predictor is None else names.get(id(predictor))
        if name is not None:
            state[name] = predictor.dump_state() if predictor is not None and record.plan is None else _dumped(record)
    return state


def _dumped(record: PredictorRecord) -> dict[str, Any]:
    from dspy.signatures.signature import infer_prefix

    assert record.signature is not None
    # DSPy takes an empty instruction as it is; ours is what it was measured with.
    signature = SignatureSpec.from_json(record.signature).with_instruction(record.instruction)
    fields = [
        {"prefix": f"{infer_prefix(field.name)}:", "description": field.description or f"${{{field.name}}}"}
        for field in signature.fields
    ]
    return {
        "traces": [],
        "train": [],
        "demos": [{name: from_exact(value) for name, value in demo.items()} for demo in record.demos],
        "signature": {"instructions": signature.instruction, "fields": fields},
        "lm": None,
    }


def _check_readable(data: bytes, state: dict[str, Any], name: str) -> None:
    """Raise ArtifactError unless the parser that DSPy uses reads back what was written."""
    import orjson

    try:
        same = json.dumps(orjson.loads(data)) == json.dumps(state)
    except orjson.JSONDecodeError:
        same = False
    if not same:
        raise ArtifactError(
            f"{name} has a demonstration with a number of more than 64 bits, or text that is no Unicode: `DSPy reads "
            "its state with orjson`; run it with vitrify.load."
        )


def _check_brought_back(artifact: Artifact, program: Any, data: bytes) -> None:
    """Raise ArtifactError unless a copy of the program with this state renders the artifact's prompts."""
    import orjson

    differences = mismatches(artifact, lower_program(program, adapter=compiled_adapter(artifact)))
    if differences:
        listed = "\n  ".join(differences)
        raise ArtifactError(f"{artifact.name} isn't the program that was compiled:\n  {listed}\nUse it as it was.")
    loaded = copy.deepcopy(program)
    loaded.load_state(orjson.loads(data))
    spec = lower_program(loaded, adapter=compiled_adapter(artifact))
    chosen = {record.path: record for record in artifact.predictors}
    for item in spec.predictors:
        record = chosen[item.path]
        if record.plan is None:
            continue
        params = spec.baseline.with_params(item.path, format=record.format)
        found = None if item.signature is None else plans_of(item, params, loaded)[0]
        if found != PromptPlan.from_json(record.plan) or dict(item.level0.decoding) != record.decoding:
            raise ArtifactError(
                f"{artifact.name}: plain DSPy would send another request for {item.path} with this state: `a state has "
                "instruction and demonstrations, the rest is the program's`; run it with vitrify.load."
            )


def _left_out(artifact: Artifact, formats: set[Format]) -> list[str]:
    decoding = "".join(f", {name}={value!r}" for name, value in sorted(artifact.model.decoding.items()))
    notes = [f"The model isn't in the state: dspy.configure(lm=dspy.LM({artifact.model.name!r}{decoding}))."]
    if formats == {"json"}:
        notes.append("Nor is the reply format: dspy.configure(adapter=dspy.JSONAdapter()).")
    elif artifact.model.adapter not in ("ChatAdapter", "JSONAdapter"):
        notes.append(f"Nor is the adapter: set your {artifact.model.adapter} with dspy.configure(adapter=...).")
    return notes


# To an artifact ---------------------------------------------------------------------------------------------------


def import_state(
    path: Path, program: Any, *, lm: Any = None, adapter: Format = "chat", api_base: Any = None
) -> Artifact:
    """Return the artifact of a program with a state that DSPy saved; it claims nothing, since nothing was measured.

    Args:
        path: What `Module.save("state.json")` wrote.
        program: An instance of the program; it is left as it is.
        lm: The model that it runs on; by default the one in the state.
        adapter: The reply format of the adapter that the state was made under, which it doesn't say.
        api_base: The server's address; never written to the file.

    Raises:
        ArtifactError: If the file is no state of this program.
        RequestError: If no model is named anywhere.
    """
    import dspy

    data = read_bounded(path, MOST_BYTES)
    state = _read_state(data, path)
    loaded = copy.deepcopy(program)
    own = dspy.JSONAdapter() if adapter == "json" else None
    _load(loaded, state, path)
    notes = [f"Imported from the DSPy state {path.name} (sha256 {hashlib.sha256(data).hexdigest()[:16]}), uncertified."]
    model = _model(state, lm, api_base, path, notes)
    for item in walk(loaded):
        item.predictor.lm = None  # one model runs a frozen program
    spec = lower_program(loaded, adapter=own)
    if spec.import_path is not None and (differ := _redescribed(program, spec, own)):
        notes.append(f"The state changes what the class says of fields ({'; '.join(differ)[:300]}).")
    shipped = spec.baseline
    said = f"imported: {path.name}"
    predictors = [
        predictor_of(item, shipped, loaded, {"instruction": said, "demos": said}, []) for item in spec.predictors
    ]
    seen = {item.path: item.level0.demos for item in spec.predictors}
    return Artifact.seal(
        Content(
            format="vitrify/1",
            name=spec.name,
            program=program_of(spec, loaded, model.decoding, predictors),
            inputs=[InputRecord(name=item.name, required=item.required) for item in spec.inputs],
            predictors=predictors,
            model=model_of(model, own),
            evidence=_no_evidence(),
            selection=_no_selection(),
            provenance=_provenance(),
            canaries=canaries_of(spec, loaded, shipped, own, seen),
            notes=notes,
            reproducible=True,
            reproducible_reason=None,
        )
    )


def _read_state(data: bytes, path: Path) -> dict[str, Any]:
    import orjson

    if path.suffix == ".pkl":
        raise ArtifactError(f"{path} is a pickle: `nothing is run out of a file`; save the state as .json in DSPy.")
    try:
        state = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ArtifactError(f"{path} is no valid JSON ({error}); name what DSPy's `save` wrote.") from error
    if isinstance(state, dict) and str(state.get("format", "")).startswith("vitrify/"):
        raise ArtifactError(f"{path} is a vitrify artifact already; `run` runs it.")
    named = {name: item for name, item in state.items() if name != "metadata"} if isinstance(state, dict) else {}
    if not named or not all(isinstance(i, dict) and {"signature", "demos", "lm"} <= i.keys() for i in named.values()):
        raise ArtifactError(
            f"{path} is no DSPy state: `every predictor has a signature, demos and an lm`; name what `save` wrote."
        )
    return named


def _load(program: Any, state: dict[str, Any], path: Path) -> None:
    """Load the state as DSPy does, after what DSPy doesn't check."""
    known = dict(program.named_parameters())
    for name, predictor in known.items():
        if name not in state:
            raise ArtifactError(
                f"{path} has no predictor {name}: `a state has those of its program`; it has {', '.join(state)}: name "
                "the program that was saved."
            )
        fields = state[name]["signature"].get("fields", [])
        if len(fields) != len(predictor.signature.fields):
            raise ArtifactError(
                f"{path}: {name} has {len(fields)} fields, in the program {len(predictor.signature.fields)}: `a state "
                "is of the program's signatures`; name the program that was saved."
            )
    # A copy under another name is what an export writes where it can't know the name that DSPy has for it.
    unknown = sorted(name for name in set(state) - set(known) if state[name] not in [state[one] for one in known])
    if unknown:
        raise ArtifactError(
            f"{path} has a predictor {unknown[0]}, and the program only {', '.join(known)}: name the program that was "
            "saved."
        )
    try:
        # Without their models: those would be imported by the name in the file.
        program.load_state({name: {**item, "lm": None} for name, item in state.items()})
    except Exception as error:  # DSPy raises whatever a value written by hand makes it meet
        raise ArtifactError(f"{path} can't be loaded ({type(error).__name__}: {str(error)[:200]}).") from error


def _model(state: dict[str, Any], lm: Any, api_base: Any, path: Path, notes: list[str]) -> Model:
    """Return the model that is named, or the one in the state with its sampling parameters; never its endpoint."""
    saved = {name: item["lm"] for name, item in state.items() if isinstance(item["lm"], dict)}
    names = sorted({str(item.get("model")) for item in saved.values()})
    if lm is None and len(names) != 1:
        found = f"it names {', '.join(names)}" if names else "it names none"
        raise RequestError(f"{path} doesn't say which model it is for ({found}): name one with --lm.")
    if lm is not None and [name for name in names if name != lm]:
        notes.append(f"The state was saved with the model {', '.join(names)}.")
    chosen = {key: value for item in saved.values() for key, value in item.items() if key in DECODING}
    decoding = {key: value for key, value in chosen.items() if value is not None} if lm is None else {}
    # Nothing is asked of it here, so nobody's key is needed.
    return resolve_lm(names[0] if lm is None else lm, api_base=api_base, api_key="none", decoding=decoding)


def _redescribed(program: Any, spec: ProgramSpec, adapter: Any) -> list[str]:
    """Return where the state's descriptions of fields differ from the class's."""
    before = {item.path: item.signature for item in lower_program(program, adapter=adapter).predictors}
    lines = []
    for item in spec.predictors:
        own = before.get(item.path)
        if own is not None and item.signature is not None:
            same = SignatureSpec(own.name, own.instruction, item.signature.fields)
            lines += [f"{item.path}: {line}" for line in own.differences(same)]
    return lines


def _no_evidence() -> EvidenceRecord:
    return EvidenceRecord(
        improved=False,
        baseline=0.0,
        compiled=0.0,
        difference=0.0,
        interval=(0.0, 0.0),
        level=0.95,
        p_value=1.0,
        n=0,
        method=IMPORTED,
        sealed=False,
        certified=False,
    )


def _no_selection() -> SelectionRecord:
    return SelectionRecord(
        shipped="compiled",
        reason="imported from a DSPy state: nothing was searched, and nothing measured",
        probability=0.5,
        estimate=0.0,
        interval=(0.0, 0.0),
        trials=0,
        evaluations=0,
        slots={},
    )


def _provenance() -> ProvenanceRecord:
    return ProvenanceRecord(
        versions=versions(),
        seed=0,
        strategy="imported",
        metric="none",
        metric_sha256=None,
        data_sha256=digest([]),
        rows={"train": 0, "select": 0, "test": 0},
        calls=0,
        prompt_tokens=0,
        completion_tokens=0,
        dollars=None,
        malformed=0,
        reparsed=0,
    )


def check_format(name: str) -> Format:
    """Return a reply format by its name, or raise ProgramError."""
    if name == "chat":
        return "chat"
    if name == "json":
        return "json"
    raise ProgramError(f"`--adapter` is chat (ChatAdapter, DSPy's default) or json (JSONAdapter), got {name!r:.40}.")

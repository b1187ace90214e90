"""Artifact: the file that ships, a closed schema with canonical bytes and a digest over its content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

from ..signatures.canonical import NotCanonical, canonical_json, canonical_members, digest, json_text
from ..signatures.errors import ArtifactError
from ..signatures.prompt import Format
from .candidate import DECODING, Candidate, PredictorParams
from .exact import from_exact
from .files import check_writable as check_writable
from .files import read_bounded, write_atomically
from .records import Grammar, Mismatch, Pattern, Record, Rule, Tag
from .rules import check_rules
from .untrusted import MOST_BYTES as MOST_BYTES
from .untrusted import MOST_DEPTH as MOST_DEPTH
from .untrusted import one_line, untrusted_json

FORMAT = "vitrify/1"
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}")]
Name = Annotated[str, Pattern(r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]{0,1000}")]
"""What is printed where the file is talked about: no control characters, which a terminal would obey."""


def _sampling_only(decoding: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(decoding) - DECODING)
    if unknown:
        raise ValueError(f"{unknown[0]!r:.60} is no sampling parameter")
    return decoding


def _no_address(name: str) -> str:
    if "://" in name:
        raise ValueError("a model's name holds no address")
    return name


Decoding = Annotated[dict[str, Any], Rule(_sampling_only, json_text({"propertyNames": {"enum": sorted(DECODING)}}))]
"""Sampling parameters by name. Any other name is refused: `api_base` in a file could send a key to a stranger."""


def _written_exactly(value: Any) -> Any:
    try:
        from_exact(value)
    except ArtifactError as error:
        raise ValueError(one_line(error)) from error
    return value


Exact = Annotated[Any, Rule(_written_exactly, '{"$ref": "#/$defs/exact"}')]
"""A JSON value as `exact` writes it."""


class InputRecord(Record):
    """One input of the program."""

    name: Name
    required: bool


class ClassProgram(Record):
    """A program whose code stays with its owner: `load` needs `program=`, or leave to import it."""

    kind: Literal["class"] = "class"
    import_path: Name | None
    """`module:Class`, as it can be imported again; imported only where the caller names the module."""
    source_sha256: Sha256 | None
    """Of the class's source text; a changed source is reported on load."""
    reason: str
    """Why the data flow isn't in the file."""


class SealedProgram(Record):
    """A program whose data flow is in the file: it runs without DSPy and without its source."""

    kind: Literal["sealed"] = "sealed"
    flow: Annotated[dict[str, Any], Grammar("flow")]
    """The data flow of `forward`, see dataflow.py."""
    import_path: Name | None
    source_sha256: Sha256 | None


class PredictorRecord(Record):
    """One predictor: what the user wrote, and what the compile chose."""

    path: Name
    aliases: list[Name]
    signature: Annotated[dict[str, Any] | None, Grammar("signature")]
    """The lowered signature of level 0; null where DSPy itself runs the predictor."""
    reason: str | None
    """Why DSPy itself runs it."""
    instruction: str
    demos: list[dict[str, Exact]]
    format: Format
    decoding: Decoding
    plan: Annotated[dict[str, Any] | None, Grammar("plan")]
    """The rendered prompt with holes for the inputs."""
    second_plan: Annotated[dict[str, Any] | None, Grammar("plan")]
    """The prompt of the one further request after a reply that can't be parsed."""
    methods: dict[str, str]
    """Where the instruction and the demonstrations come from, in words."""
    rows: list[int]
    """Rows of the training data that ship as demonstrations."""


class CapabilitiesRecord(Record):
    """What the model was known to accept, which decides what a request asks for."""

    response_format: bool
    response_schema: bool
    function_calling: bool
    reasoning: bool


class ModelRecord(Record):
    """The language model that the program was compiled for; never an endpoint, never a key."""

    name: Annotated[Name, Rule(_no_address, '{"not": {"pattern": "://"}}')]
    decoding: Decoding
    capabilities: CapabilitiesRecord
    adapter: Name
    """The class of the adapter that was in force; what DSPy itself runs needs it again."""


class EvidenceRecord(Record):
    """What the sealed test says, winner against baseline, on the same rows."""

    improved: bool
    baseline: float
    compiled: float
    difference: float
    interval: tuple[float, float]
    level: float
    p_value: float
    n: int
    method: str
    sealed: bool
    """Whether the rows were a sealed test; false where the data was too small for one."""
    certified: bool
    """Whether the run came to its end; if not, these are the select set's figures so far, and nothing is claimed."""

    def __str__(self) -> str:
        where = f"on {self.n} {self._rows()}"
        if self.method.startswith("none: imported"):
            return "uncertified: imported, nothing was measured"
        if not self.n:
            return "uncertified: the run was stopped before anything was known"
        if self.method.startswith("none"):
            return f"{self.shown(self.baseline)} {where}: the baseline ships, so there is no difference"
        return f"{self.shown(self.baseline)} -> {self.shown(self.compiled)} {where}: {self.gain}{self.claim}"

    def shown(self, score: float) -> str:
        """Return a score as text: in percent where the metric's values are shares, as it is elsewhere."""
        return f"{100 * score:.1f} %" if self._shares() else f"{score:.4g}"

    @property
    def gain(self) -> str:
        """The difference with its interval and p-value, as text."""
        scale, unit, form = (100, " points", "+.1f") if self._shares() else (1, "", "+.4g")
        low, high = (f"{scale * value:{form}}" for value in self.interval)
        return (
            f"{scale * self.difference:{form}}{unit} "
            f"({100 * self.level:g} % interval {low} to {high}, p = {self.p_value:.2g})"
        )

    def _shares(self) -> bool:
        return 0 <= self.baseline <= 1 and 0 <= self.compiled <= 1

    @property
    def claim(self) -> str:
        """What follows where no gain is claimed; empty where one is."""
        if self.improved:
            return ""
        if not self.certified:
            return "; uncertified: the run was stopped before the sealed test"
        if not self.sealed:
            return "; too few rows to claim a gain"
        return "; no gain is claimed: the interval holds zero" + (
            ", and the compiled program did worse" if self.difference < 0 else ""
        )

    def _rows(self) -> str:
        if not self.certified:
            return "select rows"
        return "sealed test rows" if self.sealed else "held-out rows"


class SelectionRecord(Record):
    """What the search did, on the select set alone."""

    shipped: Literal["compiled", "baseline"]
    reason: str
    probability: float
    """That the winner beats the baseline, by the select set."""
    estimate: float
    interval: tuple[float, float]
    trials: int
    evaluations: int
    slots: dict[str, int]
    """How many levels each slot had."""


class ProvenanceRecord(Record):
    """What the compile was given, by hash, and what it took."""

    versions: dict[str, str]
    seed: int
    strategy: str
    metric: str
    metric_sha256: Sha256 | None
    data_sha256: Sha256
    rows: dict[str, int]
    """Rows in train, select and test."""
    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None
    malformed: int
    reparsed: int


class MessageRecord(Record):
    """One message as it is sent."""

    role: Literal["system", "user", "assistant"]
    content: str


class Canary(Record):
    """An input and the sha256 of the messages that it must render to."""

    path: Name
    inputs: dict[str, Exact]
    messages: list[MessageRecord]
    """Those that the predictor's plan doesn't hold: the last one, or all where DSPy renders. For a readable diff."""
    sha256: Sha256
    """Of all the messages, canonical."""


class Content(Record):
    """Everything that the digest covers."""

    format: Literal["vitrify/1"]
    name: Name
    program: Annotated[ClassProgram | SealedProgram, Tag("kind")]
    inputs: list[InputRecord]
    predictors: list[PredictorRecord]
    model: ModelRecord
    evidence: EvidenceRecord
    selection: SelectionRecord
    provenance: ProvenanceRecord
    canaries: list[Canary]
    notes: list[str]
    reproducible: bool
    reproducible_reason: str | None


class Artifact(Content):
    """A frozen program with its evidence; `save` writes it, `vitrify.load` runs it."""

    sha256: Sha256

    @classmethod
    def seal(cls, content: Content) -> "Artifact":
        """Return the artifact with this content and the digest over it.

        Raises:
            ArtifactError: If the content can't be written down so that `read_artifact` reads it again.
        """
        data = content.to_json()
        try:
            text = canonical_json({**data, "sha256": digest(data)})
        except NotCanonical as error:
            raise ArtifactError(f"{content.name} has a value that no artifact holds: {error}.") from error
        return parse_artifact(text.encode(), content.name)

    @property
    def candidate(self) -> Candidate:
        """The parameters that ship, by path."""
        return Candidate({record.path: _params(record) for record in self.predictors})

    def to_bytes(self) -> bytes:
        """Return the canonical bytes (RFC 8785); equal compiles give equal bytes."""
        return canonical_json(self.to_json()).encode() + b"\n"

    def save(self, path: str | Path) -> Path:
        """Write the file, by way of a sibling, so that a crash leaves the old file or the new one.

        Raises:
            ArtifactError: If the path can't be written.
        """
        data = self.to_bytes()
        if len(data) > MOST_BYTES:
            raise ArtifactError(
                f"{self.name} has {len(data)} bytes: `an artifact has at most {MOST_BYTES}`; compile with fewer or "
                "shorter demonstrations (max_demos)."
            )
        write_atomically(Path(path), data)
        return Path(path)


def _params(record: PredictorRecord) -> PredictorParams:
    return PredictorParams(
        instruction=record.instruction,
        demos=tuple(
            MappingProxyType({name: from_exact(value) for name, value in demo.items()}) for demo in record.demos
        ),
        format=record.format,
        decoding=MappingProxyType(dict(record.decoding)),
    )


def read_artifact(path: str | Path) -> Artifact:
    """Return the artifact in a file, checked against its schema and its digest.

    Raises:
        ArtifactError: If the file isn't there, is too large, is no JSON, has another format, or was edited.
    """
    return parse_artifact(read_bounded(Path(path), MOST_BYTES), str(path))


def parse_artifact(data: bytes, name: str) -> Artifact:
    """Return the artifact in `data`; `name` says in errors which file it was."""
    value = untrusted_json(data, name)
    if not isinstance(value, dict) or "format" not in value:
        raise ArtifactError(
            f"{name} is no vitrify artifact: `the first level is an object with a format`; name the file that "
            "`compile -o` wrote."
        )
    if value["format"] != FORMAT:
        raise ArtifactError(
            f"{name} has the format {str(value['format'])[:40]!r}: `this version reads {FORMAT}`; update "
            "vitrify, or compile again."
        )
    claimed = value.get("sha256")
    try:
        members = canonical_members(value)
    except NotCanonical as error:
        raise ArtifactError(
            f"{name} holds a value that no artifact holds ({one_line(error)}); compile again."
        ) from error
    covered = ",".join(text for key, text in members.items() if key != "sha256")
    actual = hashlib.sha256(f"{{{covered}}}".encode()).hexdigest()
    if claimed != actual:
        raise ArtifactError(
            f"{name} was changed after it was written: `sha256` says {str(claimed)[:12]!r}, the content has "
            f"{actual[:12]!r}; take the original file, or compile again."
        )
    # What is read is what the digest covers: `1.0` in the file is the canonical `1`.
    read = json.loads(f"{{{','.join(members.values())}}}")
    try:
        artifact = Artifact.from_json(read)
        check_rules(read)
        return artifact
    except Mismatch as error:
        where = ".".join(str(part) for part in error.where)
        raise ArtifactError(
            f"{name}: `{one_line(where)}` is wrong ({one_line(error)}); it was written by another version or by hand: "
            "compile again."
        ) from error


def inputs_of(artifact: Artifact) -> Mapping[str, bool]:
    """Return the program's inputs and whether each is required."""
    return cast(Mapping[str, bool], {item.name: item.required for item in artifact.inputs})

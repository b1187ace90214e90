"""`vitrify verify`: whether a file is what it says it is, and whether it still does what it claims."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import arguments
from .boundary import boundary
from .inspecting import visible
from .signatures.errors import ArtifactError, DataError, RequestError

if TYPE_CHECKING:
    from .compiler.claim import Comparison
    from .compiler.data import Dataset, Example
    from .compiler.metric import MetricSpec
    from .programs.artifact import Artifact

EXACTLY = 1e-9
"""Two means of the same scores differ by less, in whichever order they were added."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What: file, bytes, prompts, program, signature, claim.
        holds: Whether it is as it should be; None where it wasn't asked for, or can't be told.
        said: What was found, in a sentence.
        more: Figures, as JSON.
    """

    name: str
    holds: bool | None
    said: str
    more: dict[str, Any] | None = None


def verify_command(
    artifact: arguments.ArtifactFile,
    key: arguments.PublicKey = None,
    signature: arguments.SignatureFile = None,
    data: arguments.ClaimData = None,
    metric: arguments.ClaimMetric = None,
    margin: arguments.Margin = None,
    group: arguments.ClaimGroup = None,
    failure_score: arguments.ClaimFailureScore = 0.0,
    program: arguments.NeededProgram = None,
    lm: arguments.OtherLm = None,
    api_base: arguments.ApiBase = None,
    concurrency: arguments.FixedConcurrency = 16,
    as_json: arguments.AsJson = False,
    debug: arguments.Debug = False,
) -> None:
    """Check a file, its signature and its claim.

    Digest, schema, bytes, prompts and program; with --key the signature, with --data and --metric the claim.

    Exit code 0 if everything that was asked holds, 1 if something doesn't, 2 if it can't be checked.

    With the data of the compile the claim is checked on its sealed test, and on any other data against new rows:
    what they contradict fails; with --margin the two must be shown equal within it.
    """
    with boundary(debug):
        if (data is None) != (metric is None):
            raise RequestError("`verify` takes --data and --metric together: they check what is claimed.")
        if signature is not None and key is None:
            raise RequestError("`--signature` is checked with a key: name the public one with --key.")
        checks = check_file(artifact, key, signature, program)
        if data is not None and metric is not None and all(check.holds is not False for check in checks):
            from .loading import open_artifact

            loaded = open_artifact(artifact, program=program, lm=lm, api_base=api_base)
            asked = _Asked(data, metric, margin, group, failure_score, concurrency)
            checks = [*checks, check_claim(loaded, asked)]
        holds = all(check.holds is not False for check in checks)
        if as_json:
            found = [{"name": c.name, "holds": c.holds, "said": c.said, **(c.more or {})} for c in checks]
            typer.echo(json.dumps({"holds": holds, "checks": found}, ensure_ascii=False))
        else:
            for check in checks:
                word = {True: "ok", False: "FAILED", None: "-"}[check.holds]
                typer.echo(f"{word:<8}{check.name:<11}{visible(check.said)}")
        if not holds:
            raise typer.Exit(1)


def check_file(path: Path, key: Path | None, signature: Path | None, program: str | None) -> list[Check]:
    """Return what can be said of a file without a call to its model; after the first failure of the file no more.

    Raises:
        RequestError: If the file, a key or a signature can't be read at all.
    """
    from .programs.artifact import MOST_BYTES, parse_artifact
    from .programs.files import read_bounded

    data = read_bounded(path, MOST_BYTES)
    checks = [] if key is None else [_signed(path, data, key, signature)]
    try:
        artifact = parse_artifact(data, str(path))
    except ArtifactError as error:
        return [Check("file", False, str(error)), *checks]
    size = f"{artifact.format}, {len(data) / 1024:.0f} KiB, sha256 {artifact.sha256}"
    written = data == artifact.to_bytes()
    said = "canonical (RFC 8785)" if written else "the same content, but other bytes than vitrify writes: reformatted"
    checks = [Check("file", True, size), Check("bytes", written, said), *checks]
    if key is None:
        from .signing import signature_of

        there = signature_of(path).exists()
        said = "there is one: name the public key with --key to check it" if there else "there is none"
        checks.append(Check("signature", None, said))
    return [*checks, *_checks_of(artifact, str(path), program)]


def _signed(path: Path, data: bytes, key: Path, signature: Path | None) -> Check:
    from .signing import read_public, signature_of, signed_by

    public, where = read_public(key), signature or signature_of(path)
    if signed_by(data, where, public):
        return Check("signature", True, f"{where} is of the holder of {key}")
    return Check("signature", False, f"{where} isn't of the holder of {key}, or not over these bytes")


def _checks_of(artifact: "Artifact", name: str, program: str | None) -> list[Check]:
    from .programs.embedded import Embedded
    from .programs.models import Model
    from .programs.runtime import check_canaries, run_artifact

    try:
        check_canaries(artifact, name)
    except ArtifactError as error:
        return [Check("prompts", False, str(error))]
    count = len(artifact.canaries)
    checks = [Check("prompts", True, f"{count} recorded inputs render to the recorded messages")]
    if program is None and artifact.program.kind == "class":
        said = f"needs its class ({artifact.program.reason}): name it with --program to check that it fits"
        return [*checks, Check("program", None, said)]
    from .loading import load_program

    module = None if program is None else load_program(program)
    try:
        # Nothing is asked: the model stands in for the recorded one.
        run_artifact(artifact, Model(Embedded()), program=module, name=name)
    except RequestError as error:
        return [*checks, Check("program", False, str(error))]
    said = "sealed: its data flow is whole" if program is None else f"{program} has the predictors of the compile"
    return [*checks, Check("program", True, said)]


@dataclass(frozen=True)
class _Asked:
    data: str
    metric: str
    margin: float | None
    group: str | None
    failure_score: float
    concurrency: int


def check_claim(loaded: Any, asked: _Asked) -> Check:
    """Return whether what an artifact claims holds on data; pays for one run over its rows.

    Raises:
        RequestError: If there is no claim, the metric is another one, or the data can't tell; before anything is paid.
    """
    from .compiler.claim import compare_with_claim
    from .compiler.metric import resolve_metric
    from .evaluation import dataset_of, evaluate_examples

    artifact: Artifact = loaded.artifact
    evidence = artifact.evidence
    if not evidence.n or not evidence.certified:
        raise RequestError(f"{artifact.name} claims nothing ({evidence}): `evaluate` scores it on data.")
    scored = resolve_metric(asked.metric)
    _check_metric(artifact, scored)
    dataset = dataset_of(artifact, asked.data, scored)
    same = dataset.digest == artifact.provenance.data_sha256
    rows = _sealed_test(artifact, dataset, asked.group) if same else dataset.examples
    result = evaluate_examples(loaded, rows, scored, concurrency=asked.concurrency, failure_score=asked.failure_score)
    found = compare_with_claim(evidence.compiled, evidence.n, [row.score for row in result.rows])
    other = "" if loaded.model.lm.name == artifact.model.name else f", on {loaded.model.lm.name} instead"
    head = (
        f"{evidence.shown(found.found)} on {found.n} {'rows of the sealed test itself' if same else 'rows'}{other}, "
        f"{evidence.shown(found.claimed)} on {found.claimed_n} claimed"
    )
    holds, words = _verdict(artifact, found, asked, same=same, model=loaded.model.lm.name)
    more = {**found.to_json(), "same_rows": same, "failures": result.failures, "calls": result.calls}
    return Check("claim", holds, f"{head}: {words}", more)


def _check_metric(artifact: "Artifact", metric: "MetricSpec") -> None:
    recorded = artifact.provenance
    known = recorded.metric_sha256 is not None and metric.digest is not None
    if (recorded.metric_sha256 != metric.digest) if known else (recorded.metric != metric.name):
        changed = known and recorded.metric == metric.name
        raise RequestError(
            f"The claim was measured with {recorded.metric}"
            + (", whose source was another: `a claim is checked with its own metric`; use it as it was."
               if changed else f", not {metric.name}: `a claim is checked with its own metric`; name that.")
        )  # fmt: skip


def _sealed_test(artifact: "Artifact", dataset: "Dataset", group: str | None) -> "tuple[Example, ...]":
    """Return the sealed test of the compile, out of all its data: a split depends on rows and seed alone."""
    from .compiler.division import MOST_SELECT, MOST_TEST
    from .compiler.splits import split

    recorded = artifact.provenance
    found = split(dataset, seed=recorded.seed, group=group)
    test = found.test[:MOST_TEST]
    counts = {"train": len(found.train), "select": len(found.select[:MOST_SELECT]), "test": len(test)}
    if counts != recorded.rows or len(test) < artifact.evidence.n:
        raise DataError(
            f"{dataset.source or 'The data'} is what {artifact.name} was compiled on, and which rows were its sealed "
            "test can't be told: `--data with its seed gives the split of the compile`; name the compile's --group, or "
            "give its own --test as --data."
        )
    return test[: artifact.evidence.n]


def _verdict(artifact: "Artifact", found: "Comparison", asked: _Asked, *, same: bool, model: str) -> tuple[bool, str]:
    """Return whether the claim holds, and why, in words."""
    evidence = artifact.evidence
    exactly = same and abs(found.difference) <= EXACTLY
    if exactly:
        return True, "exactly as claimed"
    if same and model == artifact.model.name == "embedded":
        group = "" if asked.group else ", or the compile had a --group that isn't named here"
        return False, f"not as claimed, and this model is deterministic: the program or a library has changed{group}"
    units = 100 if 0 <= evidence.compiled <= 1 and 0 <= found.found <= 1 else 1
    unit, form = (" points", ".1f") if units == 100 else ("", ".4g")
    low, high = (f"{units * bound:+{form}}" for bound in found.interval)
    measured = f"{units * found.difference:+{form}}{unit} (95 % interval {low} to {high})"
    within = f"{units * found.within:{form}}{unit}"
    if found.differs:
        return (
            False,
            f"{'above' if found.difference > 0 else 'below'} the claim by more than chance explains: {measured}",
        )
    if asked.margin is None:
        return True, f"no contradiction: {measured}; shown equal within {within}, not closer, as far as these rows tell"
    wanted = f"{units * asked.margin:{form}}{unit}"
    if found.within <= asked.margin:
        return True, f"equal within {wanted}: {measured}"
    return False, f"not shown equal within {wanted}, only within {within}: {measured}; more rows would tell"

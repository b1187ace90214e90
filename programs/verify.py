"""bind_artifact(): an artifact's parameters on the user's own program, refused where the two don't match."""

import logging
from collections.abc import Mapping
from typing import Any

from ..signatures.errors import ArtifactError, ProgramError
from ..signatures.prompt import PromptPlan
from ..signatures.signature import SignatureSpec
from .artifact import Artifact
from .bind import bind
from .canaries import check_dspy_canaries, difference
from .program import ProgramSpec, lower_program, walk
from .untrusted import printable

logger = logging.getLogger("vitrify")


def bind_artifact(artifact: Artifact, program: Any, name: str) -> Any:
    """Return `program` bound to the artifact's parameters.

    Raises:
        ArtifactError: If a predictor is missing, a signature differs, or a prompt comes out differently; says how.
        ProgramError: If `program` is no instance of a program.
    """
    if isinstance(program, type):
        raise ProgramError(f"program= is an instance: pass {program.__name__}(), not {program.__name__}.")
    spec = lower_program(program, adapter=compiled_adapter(artifact))
    differences = mismatches(artifact, spec)
    if spec.name != artifact.name:
        differences.insert(0, f"class {artifact.name}: the program is a {spec.name}")
    if differences:
        listed = "\n  ".join(differences)
        raise ArtifactError(
            f"{name} was compiled for another {artifact.name}: `predictors and signatures are those of the compile`:\n"
            f"  {listed}\nUse the program as it was, or compile again."
        )
    recorded = artifact.program.source_sha256
    if recorded is not None and spec.source_sha256 is not None and recorded != spec.source_sha256:
        logger.warning("%s: the source of %s has changed since it was compiled.", name, artifact.name)
    bound = bind(program, spec, artifact.candidate)
    predictors = {item.path: item.predictor for item in walk(bound)}
    _check_plans(artifact, predictors, name)
    import dspy

    check_dspy_canaries(artifact, predictors, compiled_adapter(artifact) or dspy.ChatAdapter(), name)
    return bound


def compiled_adapter(artifact: Artifact) -> Any:
    """Return the adapter that was in force at the compile.

    Raises:
        ArtifactError: If that was one of the user's own, and it isn't in force now.
    """
    import dspy

    if any(record.plan is not None for record in artifact.predictors):
        # A plan says that it was DSPy's ChatAdapter or JSONAdapter with default options.
        return dspy.JSONAdapter() if artifact.model.adapter == "JSONAdapter" else None
    now = type(dspy.settings.adapter or dspy.ChatAdapter()).__name__
    if now != artifact.model.adapter:
        raise ArtifactError(
            f"{artifact.name} was compiled under {artifact.model.adapter}, and {now} is in force: `what is measured is "
            "what ships`; set it with dspy.configure(adapter=...) before load."
        )
    return dspy.settings.adapter


def mismatches(artifact: Artifact, spec: ProgramSpec) -> list[str]:
    """Return what differs between an artifact's predictors and a program's, a line each."""
    mine = {record.path: record for record in artifact.predictors}
    theirs = {item.path: item for item in spec.predictors}
    lines = [f"predictor {path}: not in the program" for path in mine if path not in theirs]
    lines += [f"predictor {path}: not in the artifact" for path in theirs if path not in mine]
    for path, record in mine.items():
        if path not in theirs or record.signature is None:
            continue
        signature = theirs[path].signature
        if signature is None:
            lines.append(f"predictor {path}: {theirs[path].reason}")
            continue
        recorded = SignatureSpec.from_json(record.signature)
        # The name and the user's own instruction may change freely: neither is part of what was compiled.
        current = SignatureSpec(recorded.name, recorded.instruction, signature.fields)
        lines += [f"predictor {path}: {line}" for line in recorded.differences(current)]
    return lines


def _check_plans(artifact: Artifact, predictors: Mapping[str, Any], name: str) -> None:
    """Raise ArtifactError, with a diff, unless every bound predictor renders the prompt that was recorded."""
    from .planned import Planned

    for record in artifact.predictors:
        if record.plan is None:
            continue
        predictor = predictors[record.path]
        plan = predictor.plans.main if isinstance(predictor, Planned) else None
        recorded = PromptPlan.from_json(record.plan)
        if plan != recorded:
            versions = artifact.provenance.versions
            raise ArtifactError(
                f"{name}: {record.path} renders another prompt than when it was compiled: `what is measured is what "
                "ships`; the program's signature or demonstrations, or a library (pydantic "
                f"{printable(versions.get('pydantic', 'unknown')[:40])}, dspy "
                f"{printable(versions.get('dspy', 'unknown')[:40])}), have changed: use what was recorded, or compile "
                f"again.\n{difference(_shown(recorded), [] if plan is None else _shown(plan))}"
            )


def _shown(plan: PromptPlan) -> list[dict[str, str]]:
    """Return everything that a plan says, as messages: its holes and its reply's schema too."""
    messages = [{"role": role, "content": content} for role, content in plan.messages]
    holes = "\n".join(
        f"{{{hole.name}}}{'' if hole.default is None else ' by default ' + hole.default}" for hole in plan.holes
    )
    schema = "" if plan.response_schema is None else f"\n{plan.response_schema}"
    return [*messages, {"role": "user", "content": f"{holes}\n{plan.requirements}{schema}"}]

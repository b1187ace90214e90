"""bind_artifact(): an artifact's parameters on the user's own program, refused where the two don't match."""

import logging
from typing import Any

from ..signatures.errors import ArtifactError, ProgramError
from ..signatures.signature import SignatureSpec
from .artifact import Artifact
from .bind import bind
from .program import ProgramSpec, lower_program

logger = logging.getLogger("vitrify")


def bind_artifact(artifact: Artifact, program: Any, name: str) -> Any:
    """Return `program` bound to the artifact's parameters.

    Raises:
        ArtifactError: If a predictor is missing, or a signature differs; says how.
    """
    if isinstance(program, type):
        raise ProgramError(f"program= is an instance: pass {program.__name__}(), not {program.__name__}.")
    import dspy

    spec = lower_program(program, adapter=dspy.settings.adapter)
    differences = mismatches(artifact, spec)
    if differences:
        listed = "\n  ".join(differences)
        raise ArtifactError(
            f"{name} was compiled for another {artifact.name}: `predictors and signatures are those of the compile`:\n"
            f"  {listed}\nUse the program as it was, or compile again."
        )
    recorded = artifact.program.source_sha256
    if recorded is not None and spec.source_sha256 is not None and recorded != spec.source_sha256:
        logger.warning("%s: the source of %s has changed since it was compiled.", name, artifact.name)
    return bind(program, spec, artifact.candidate)


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

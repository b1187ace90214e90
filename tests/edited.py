"""Artifacts that differ from a compiled one in something, sealed anew: for several tests."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrify.programs.artifact import Artifact, Content


def edited(artifact: Artifact, change: Callable[[dict[str, Any]], object]) -> Artifact:
    """Return the artifact after `change` did something to its JSON data, with the digest of what it is now."""
    data = {key: value for key, value in artifact.to_json().items() if key != "sha256"}
    data = copy.deepcopy(data)
    change(data)
    return Artifact.seal(Content.from_json(data))


def save_edited(artifact: Artifact, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    return edited(artifact, change).save(path)

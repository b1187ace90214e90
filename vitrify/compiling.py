"""Compiling what the command line was asked: the request is kept in the run's directory before a call is paid."""

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .boundary import explain
from .loading import check_output, load_program
from .programs.artifact import Artifact
from .request import Changes, CompileRequest, Recorded, base_url, public, read_request
from .signatures.errors import ArtifactError, RequestError, VitrifyError
from .signing import check_signable, read_private, sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from .compiler.progress import Progress


def compile_request(
    request: CompileRequest, run_dir: Path | None, progress: "Progress", *, shown: Path | None = None
) -> Artifact:
    """Compile, and write the artifact.

    Args:
        request: What was asked; relative paths start from the working directory.
        run_dir: The run's directory; by default the one that equal requests share.
        progress: Told what happens.
        shown: How the run's directory is called in sentences; by default as it is.

    Raises:
        KeyboardInterrupt: After Ctrl-C; its `run_dir` says where the run is, if it was begun.
        VitrifyError: If anything else went wrong; a note says how to go on.
    """
    check_output(request.output, "-o")
    key = _signer(request)
    from .compiler.compile import compile as run_compile
    from .front import resolve_strategy

    options = request.options()
    folder: Path | None = None

    def begun(found: Path) -> None:
        nonlocal folder
        Recorded.of(request).write(found)
        folder = found

    try:
        artifact = run_compile(
            load_program(request.program),
            request.data,
            request.metric,
            lm=request.lm,
            strategy=resolve_strategy(options.strategy),
            budget=request.budget(),
            seed=request.seed,
            run_dir=run_dir,
            options=replace(options, progress=progress),
            begun=begun,
        )
    except KeyboardInterrupt as stop:
        if folder is not None and not hasattr(stop, "run_dir"):
            stop.run_dir = folder  # type: ignore[attr-defined]  # read by vitrify.stopped
        raise
    except VitrifyError as error:
        if folder is not None and explain(error)[1] == 1:
            error.add_note(f"What was paid is kept: `{resume_command(shown or folder)}` goes on.")
        raise
    assert folder is not None
    try:
        artifact.save(request.output)
        if key is not None:
            sign(request.output, key)
    except ArtifactError as error:
        error.add_note(f"`{resume_command(shown or folder)} -o FILE` writes it elsewhere, without a call.")
        raise
    return artifact


def _signer(request: CompileRequest) -> "Ed25519PrivateKey | None":
    """Return the key that signs the artifact, if one is asked for; checked before money is spent."""
    if request.sign is None:
        return None
    check_signable(request.output)
    return read_private(request.sign)


def resume(run: Path, changes: Changes, progress: "Progress") -> tuple[Artifact, Path]:
    """Go on with a run from its directory; return the artifact and where it was written.

    Raises:
        RequestError: If `run` is no run that `vitrify compile` began, or something that it needs is gone.
        KeyboardInterrupt: After Ctrl-C, as `compile_request`.
    """
    recorded, here = read_request(run), Path.cwd()
    _check(run, recorded, changes)
    if recorded.vitrify != __version__:
        progress.note(
            f"{run} was begun by vitrify {recorded.vitrify}, and this is {__version__}: what it asks otherwise is paid."
        )
    for name in recorded.changed():
        progress.note(
            f"{name} has changed since {run} was begun: what is still asked alike is known, the rest is paid."
        )
    if changes.output is not None and here != recorded.directory:
        changes = changes.model_copy(update={"output": here / changes.output})
    request = recorded.request.changed(changes)
    # The program may open files beside it, too: it is compiled where it was.
    with contextlib.chdir(recorded.directory):
        artifact = compile_request(request, here / run, progress, shown=run)
    return artifact, request.output if here == recorded.directory else recorded.directory / request.output


def resume_command(run: Path) -> str:
    """Return the command that goes on with a run, as it can be typed in a shell."""
    return f"vitrify resume {shlex.quote(str(run))}"


def _check(run: Path, recorded: Recorded, changes: Changes) -> None:
    """Raise RequestError where the run can't go on as the one that it is."""
    if not recorded.directory.is_dir():
        raise RequestError(
            f"{run} was begun in {recorded.directory}, which is gone: bring it back, or compile again from another "
            f"folder with --run-dir {shlex.quote(str(run))}."
        )
    for name in recorded.missing():
        raise RequestError(
            f"{recorded.directory / name}, which {run} was begun with, is gone: bring it back, or compile again with "
            f"another and --run-dir {shlex.quote(str(run))}."
        )
    if recorded.request.changed(changes).budget().weighed and not recorded.request.budget().weighed:
        raise RequestError(
            f"{run} was begun without a limit in tokens or dollars, so without a longest reply: with one every request "
            "would be another, and be paid again; limit it with --budget-calls or --budget-seconds."
        )
    then, given = recorded.request.api_base, changes.api_base
    if given is not None and public(given) != then:
        raise RequestError(
            f"--api-base is the address that the run was begun with, {then or 'none'}, got {public(given)!r}: what was "
            "paid is known by it; compile again to ask another server."
        )
    if given is None and recorded.credentials:
        raise RequestError(
            f"{run} was begun with credentials in --api-base, which no file keeps: give the whole address again, with "
            "--api-base."
        )
    if (now := base_url(recorded.request)) != recorded.base_url:
        raise RequestError(
            f"OPENAI_BASE_URL is {now or 'not set'} and was {recorded.base_url or 'not set'} when {run} was begun: "
            "what was paid is known by its address; set it as it was."
        )

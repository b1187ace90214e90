"""load(): a frozen program out of its file, sync and async."""

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from ..signatures.errors import ArtifactError, RequestError, VitrifyError
from ..signatures.prompt import Capabilities
from .artifact import Artifact, ClassProgram, SealedProgram, inputs_of, read_artifact
from .canaries import check_canaries
from .flow import Flow, calls_of
from .frozen import FrozenPredictor, Unreadable, check_types
from .lm import Reply, Request, Retry, Usage
from .loaded import Loaded
from .models import Model, resolve_lm
from .prediction import Prediction

Running = Generator[Request, Reply, Prediction]
"""Yields the requests of one call in order, is sent their replies, and returns the prediction."""


class SealedRun(Loaded):
    """A sealed program: runs its flow with plans, parsers and a client, and without DSPy."""

    def __init__(self, artifact: Artifact, model: Model, types: Mapping[str, Any]) -> None:
        super().__init__(artifact, model)
        assert isinstance(artifact.program, SealedProgram)
        # What was recorded decides what a request asks for, so that the same file sends the same bytes everywhere.
        recorded = Capabilities(**artifact.model.capabilities.to_json())
        capabilities = recorded if model.lm.name == artifact.model.name else model.lm.capabilities
        self._flow = Flow.from_json(artifact.program.flow)
        self._flow.check_size()
        self._predictors = {
            record.path: FrozenPredictor(record, decoding=model.decoding, capabilities=capabilities, types=types)
            for record in artifact.predictors
            if record.plan is not None and record.signature is not None
        }
        check_types(types, self._predictors)
        for path in calls_of(self._flow):
            if path not in self._predictors:
                raise ArtifactError(
                    f"the flow calls {path!r:.60}: `every predictor of a flow has a plan`; compile again."
                )
        self._names = inputs_of(artifact).keys()
        if {p.name: p.required for p in self._flow.parameters} != inputs_of(artifact):
            raise ArtifactError("the flow takes other inputs than the artifact names; compile again.")

    def __call__(self, *args: Any, **inputs: Any) -> Prediction:
        """Run the program and return its prediction.

        Raises:
            RequestError: If an input is missing or unknown.
            LMError: If the language model can't be reached.
            Unreadable: If its replies hold no values.
        """
        if args or inputs.keys() != self._names:
            self.check(args, inputs)
        return _drive(self._run(inputs), self.model.lm.complete)

    async def acall(self, *args: Any, **inputs: Any) -> Prediction:
        """Run the program without blocking the event loop."""
        if args or inputs.keys() != self._names:
            self.check(args, inputs)
        return await _adrive(self._run(inputs), self.model.lm.acomplete)

    def _run(self, inputs: Mapping[str, Any]) -> Running:
        model, began = self.model.lm.name, perf_counter()
        usage, calls = Usage(), 0
        steps = self._flow.execute(inputs)
        outputs: Any = None
        while True:
            try:
                path, asked = steps.send(outputs)
            except StopIteration as stop:
                seconds = perf_counter() - began
                return Prediction(stop.value, usage=usage, calls=calls, model=model, seconds=seconds)
            asking = self._predictors[path].ask(asked, model)
            reply: Any = None
            while True:
                try:
                    request = asking.send(reply)
                except StopIteration as stop:
                    outputs = stop.value
                    break
                reply = yield request
                usage, calls = usage + reply.usage if calls else reply.usage, calls + 1


def _drive(running: Running, complete: Callable[[Request], Reply]) -> Prediction:
    try:
        request = next(running)
        while True:
            request = running.send(complete(request))
    except StopIteration as stop:
        prediction: Prediction = stop.value
        return prediction


async def _adrive(running: Running, complete: Callable[[Request], Awaitable[Reply]]) -> Prediction:
    try:
        request = next(running)
        while True:
            request = running.send(await complete(request))
    except StopIteration as stop:
        prediction: Prediction = stop.value
        return prediction


def load(
    path: str | Path,
    *,
    program: Any = None,
    allow_import: Iterable[str] = (),
    types: Mapping[str, Any] | None = None,
    lm: Any = None,
    api_base: str | None = None,
    api_key: str | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    hook: Any = None,
) -> Any:
    """Return the program in an artifact, ready to be called.

    Args:
        path: The file that `compile` wrote.
        program: An instance of the program's class, for a program that isn't sealed.
        allow_import: Modules that may be imported by the name in the file; nothing else ever is.
        types: The user's own classes by output field, `"team"` or `"triage.team"`, for a sealed program.
        lm: The language model; by default the one the program was compiled for.
        api_base: The server's address; it is never in the file.
        api_key: The key; by default the provider's environment variable.
        timeout: Seconds that one attempt of our own client may take, from connecting to the last byte; by default 180.
        retries: How often our own client repeats a call that failed and may succeed later; by default 4 times.
        hook: Called with every `LMCall` to the model once it is over; or `"opentelemetry"`, which records spans.

    Raises:
        ArtifactError: If the file is damaged, edited, of another format or of another program.
        ProgramError: If the program isn't sealed and neither `program` nor `allow_import` is given.
    """
    artifact = read_artifact(path)
    name = artifact.model.name if lm is None else lm
    model = resolve_lm(name, api_base=api_base, api_key=api_key, **patience(name, api_base, timeout, retries))
    if lm is None or model.lm.name == artifact.model.name:
        model = Model(model.lm, {**artifact.model.decoding, **model.decoding})
    if hook is not None:
        from .hooks import Hooked, resolve_hook

        told = Hooked(model.lm, resolve_hook(hook), program=artifact.name, sha256=artifact.sha256)
        model = Model(told, model.decoding)
    return run_artifact(artifact, model, program=program, allow_import=allow_import, types=types, name=str(path))


def patience(lm: Any, api_base: str | None, timeout: float | None, retries: int | None) -> dict[str, Any]:
    """Return what `resolve_lm` is told of time-outs and retries; they are our own client's alone."""
    if timeout is None and retries is None:
        return {}
    ours = isinstance(lm, str) and (api_base is not None or lm.strip().startswith("openai/"))
    if not ours:
        shown = lm if isinstance(lm, str) else type(lm).__name__
        raise RequestError(
            f"`timeout and retries are for a server that speaks OpenAI's protocol`, got {shown:.60}: set them on a "
            "dspy.LM of your own and pass that as lm=."
        )
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise RequestError(f"`timeout is above 0 seconds`, got {timeout!r:.40}.")
    if retries is not None and (not isinstance(retries, int) or retries < 0):
        raise RequestError(f"`retries is a number from 0`, got {retries!r:.40}.")
    told: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    return told if retries is None else {**told, "retry": Retry(attempts=retries + 1)}


def run_artifact(
    artifact: Artifact,
    model: Model,
    *,
    program: Any = None,
    allow_import: Iterable[str] = (),
    types: Mapping[str, Any] | None = None,
    name: str = "the artifact",
) -> Any:
    """Return what runs an artifact on `model`; see `load`."""
    if program is None and isinstance(artifact.program, SealedProgram):
        return _sealed(artifact, model, dict(types or {}), name)
    if types:
        raise RequestError("types= is for a sealed program without program=: a program of your own has its classes.")
    from .bound import BoundRun, import_program

    check_canaries(artifact, name)
    if program is None:
        assert isinstance(artifact.program, ClassProgram)
        allowed = (allow_import,) if isinstance(allow_import, str) else tuple(allow_import)
        program = import_program(artifact, artifact.program, allowed, name)
    return BoundRun(artifact, program, model, name)


def _sealed(artifact: Artifact, model: Model, types: dict[str, Any], name: str) -> SealedRun:
    try:
        check_canaries(artifact, name)
        return SealedRun(artifact, model, types)
    except VitrifyError:
        raise
    except Exception as error:  # a type written by hand makes pydantic raise whatever it meets
        raise ArtifactError(
            f"{name} holds a type that can't be built ({type(error).__name__}: {str(error)[:200]}); it was written by "
            "hand: compile again."
        ) from error


__all__ = ["Loaded", "SealedRun", "Unreadable", "check_canaries", "load", "run_artifact"]

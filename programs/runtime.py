"""load(): a frozen program out of its file, sync and async."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from ..signatures.canonical import digest
from ..signatures.errors import ArtifactError, ProgramError, RequestError, WorkError
from ..signatures.prompt import Capabilities, PromptPlan
from ..signatures.reply import ParseError, ReplyParser
from ..signatures.signature import SignatureSpec
from .artifact import Artifact, ClassProgram, PredictorRecord, SealedProgram, inputs_of, read_artifact
from .candidate import in_order
from .flow import Fields, Flow
from .lm import Reply, Request, Usage
from .models import Model, resolve_lm
from .prediction import Prediction


class Unreadable(WorkError):
    """The model answered, and no value could be read from its reply, the second request included."""


class FrozenPredictor:
    """One predictor out of an artifact: its plan, its parser, its decoding."""

    def __init__(
        self, record: PredictorRecord, model: Model, capabilities: Capabilities, types: Mapping[str, Any]
    ) -> None:
        assert record.signature is not None and record.plan is not None
        self.path = record.path
        self.signature = SignatureSpec.from_json(record.signature)
        self.plan = PromptPlan.from_json(record.plan)
        self.second = None if record.second_plan is None else PromptPlan.from_json(record.second_plan)
        own = {
            f.name: types[key]
            for f in self.signature.outputs
            for key in (f"{record.path}.{f.name}", f.name)
            if key in types
        }
        self.parser = ReplyParser(self.signature, own or None)
        self.config = {**model.decoding, **record.decoding}
        self.capabilities = capabilities

    def request(self, plan: PromptPlan, inputs: Mapping[str, Any], model: str) -> Request:
        """Return the request for these inputs."""
        params = plan.request_params(self.config, self.capabilities)
        replicate = params.pop("rollout_id", None)
        return Request(model, tuple(plan.render(inputs)), {k: v for k, v in params.items() if v is not None}, replicate)

    def read(self, reply: Reply, plan: PromptPlan) -> dict[str, Any]:
        """Return the outputs in a reply, or raise ParseError."""
        if not reply.text:
            raise ParseError(None, "a text", "", "there is none")
        return self.parser.parse(reply.text, plan.format)


class FrozenProgram(Protocol):
    """A program that was loaded: call it with its inputs."""

    artifact: Artifact

    def __call__(self, **inputs: Any) -> Any:
        """Run it and return its prediction."""
        ...

    async def acall(self, **inputs: Any) -> Any:
        """Run it without blocking the event loop."""
        ...


class SealedRun:
    """A sealed program: runs its flow with plans, parsers and a client, and without DSPy."""

    def __init__(self, artifact: Artifact, model: Model, types: Mapping[str, Any]) -> None:
        assert isinstance(artifact.program, SealedProgram)
        self.artifact = artifact
        self.model = model
        self.flow = Flow.from_json(artifact.program.flow)
        # What was recorded decides what a request asks for, so that the same file sends the same bytes everywhere.
        recorded = Capabilities(**artifact.model.capabilities)
        capabilities = recorded if model.lm.name == artifact.model.name else model.lm.capabilities
        self.predictors = {
            record.path: FrozenPredictor(record, model, capabilities, types)
            for record in artifact.predictors
            if record.plan is not None
        }

    def __call__(self, **inputs: Any) -> Prediction:
        """Run the program and return its prediction.

        Raises:
            RequestError: If an input is missing or unknown.
            LMError: If the language model can't be reached.
            Unreadable: If its replies hold no values.
        """
        steps = self.flow.execute(inputs)
        tally = _Tally()
        try:
            path, asked = next(steps)
            while True:
                path, asked = steps.send(self._predict(self._predictor(path), asked, tally))
        except StopIteration as stop:
            return self._prediction(stop.value, tally)

    async def acall(self, **inputs: Any) -> Prediction:
        """Run the program without blocking the event loop."""
        steps = self.flow.execute(inputs)
        tally = _Tally()
        try:
            path, asked = next(steps)
            while True:
                path, asked = steps.send(await self._apredict(self._predictor(path), asked, tally))
        except StopIteration as stop:
            return self._prediction(stop.value, tally)

    def batch(self, rows: Iterable[Mapping[str, Any]], *, concurrency: int = 16) -> list[Prediction | Exception]:
        """Run the program on rows, some at a time; errors stand in the place of their row."""
        with ThreadPoolExecutor(concurrency) as pool:
            futures = [pool.submit(self.__call__, **row) for row in rows]
            return [_outcome(future) for future in futures]

    def _predictor(self, path: str) -> FrozenPredictor:
        found = self.predictors.get(path)
        if found is None:
            raise ArtifactError(
                f"the flow calls {path!r}, and `every predictor of the flow has a plan`; compile again."
            )
        return found

    def _predict(self, predictor: FrozenPredictor, inputs: Mapping[str, Any], tally: "_Tally") -> dict[str, Any]:
        reply = tally.add(self.model.lm.complete(predictor.request(predictor.plan, inputs, self.model.lm.name)))
        try:
            return predictor.read(reply, predictor.plan)
        except ParseError as error:
            if predictor.second is None:
                raise _unreadable(predictor, error) from error
        reply = tally.add(self.model.lm.complete(predictor.request(predictor.second, inputs, self.model.lm.name)))
        try:
            return predictor.read(reply, predictor.second)
        except ParseError as error:
            raise _unreadable(predictor, error) from error

    async def _apredict(self, predictor: FrozenPredictor, inputs: Mapping[str, Any], tally: "_Tally") -> dict[str, Any]:
        reply = tally.add(await self.model.lm.acomplete(predictor.request(predictor.plan, inputs, self.model.lm.name)))
        try:
            return predictor.read(reply, predictor.plan)
        except ParseError as error:
            if predictor.second is None:
                raise _unreadable(predictor, error) from error
        reply = tally.add(
            await self.model.lm.acomplete(predictor.request(predictor.second, inputs, self.model.lm.name))
        )
        try:
            return predictor.read(reply, predictor.second)
        except ParseError as error:
            raise _unreadable(predictor, error) from error

    def _prediction(self, value: Any, tally: "_Tally") -> Prediction:
        if not isinstance(value, Fields):
            raise ArtifactError("the flow returns no prediction; compile again.")
        return Prediction(value, usage=tally.usage, calls=tally.calls, model=self.model.lm.name)

    def close(self) -> None:
        """Close the connections."""
        self.model.lm.close()


class _Tally:
    """Counts the requests of one call."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.calls = 0

    def add(self, reply: Reply) -> Reply:
        self.usage += reply.usage
        self.calls += 1
        return reply


def _outcome(future: Any) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error


def _unreadable(predictor: FrozenPredictor, error: ParseError) -> Unreadable:
    return Unreadable(f"{predictor.path}: the model's reply has no readable values ({str(error)[:300]}).")


class BoundRun:
    """A program that needs its class: bound to what the artifact holds, run by DSPy's modules."""

    def __init__(self, artifact: Artifact, program: Any, model: Model) -> None:
        from .bridge import EngineLM

        self.artifact = artifact
        self.model = model
        self.program = program
        self._lm = EngineLM(model.lm, **dict(model.decoding))

    def __call__(self, **inputs: Any) -> Any:
        """Run the program and return its `dspy.Prediction`."""
        import dspy

        _check_inputs(self.artifact, inputs)
        with dspy.context(lm=self._lm):
            return self.program(**inputs)

    async def acall(self, **inputs: Any) -> Any:
        """Run the program without blocking the event loop."""
        import dspy

        _check_inputs(self.artifact, inputs)
        with dspy.context(lm=self._lm):
            if hasattr(type(self.program), "aforward"):
                return await self.program.acall(**inputs)
            return await dspy.asyncify(self.program)(**inputs)

    def batch(self, rows: Iterable[Mapping[str, Any]], *, concurrency: int = 16) -> list[Any]:
        """Run the program on rows, some at a time; errors stand in the place of their row."""
        with ThreadPoolExecutor(concurrency) as pool:
            futures = [pool.submit(self.__call__, **row) for row in rows]
            return [_outcome(future) for future in futures]

    def close(self) -> None:
        """Close the connections."""
        self.model.lm.close()


def load(
    path: str | Path,
    *,
    program: Any = None,
    allow_import: Iterable[str] = (),
    types: Mapping[str, Any] | None = None,
    lm: Any = None,
    api_base: str | None = None,
    api_key: str | None = None,
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

    Raises:
        ArtifactError: If the file is damaged, edited, of another format or of another program.
        ProgramError: If the program isn't sealed and neither `program` nor `allow_import` is given.
    """
    artifact = read_artifact(path)
    model = resolve_lm(artifact.model.name if lm is None else lm, api_base=api_base, api_key=api_key)
    if lm is None or model.lm.name == artifact.model.name:
        model = Model(model.lm, {**artifact.model.decoding, **model.decoding})
    return run_artifact(artifact, model, program=program, allow_import=allow_import, types=types, name=str(path))


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
    check_canaries(artifact, name)
    if program is None and isinstance(artifact.program, SealedProgram):
        return SealedRun(artifact, model, dict(types or {}))
    if program is None:
        assert isinstance(artifact.program, ClassProgram)
        program = _imported(artifact, artifact.program, tuple(allow_import), name)
    from .verify import bind_artifact

    return BoundRun(artifact, bind_artifact(artifact, program, name), model)


def _imported(artifact: Artifact, record: ClassProgram, allowed: tuple[str, ...], name: str) -> Any:
    import importlib

    module, _, qualname = (record.import_path or "").partition(":")
    if not module or module not in allowed:
        raise ProgramError(
            f"{name} needs the class {artifact.name} to run ({record.reason}): `nothing is imported out of a file` "
            "unless "
            f"you say so; pass program={artifact.name}()" + (f", or allow_import=[{module!r}]." if module else ".")
        )
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ProgramError(
            f"{name}: {record.import_path} can't be imported ({error}); pass program= instead."
        ) from error
    return found()


def check_canaries(artifact: Artifact, name: str) -> None:
    """Raise ArtifactError unless every canary renders to the messages that were recorded."""
    plans: dict[str, PromptPlan] = {}
    for record in artifact.predictors:
        if record.plan is not None:
            plans[record.path] = PromptPlan.from_json(record.plan)
    for canary in artifact.canaries:
        plan = plans.get(canary.path)
        if plan is None:
            raise ArtifactError(f"{name}: a canary names {canary.path!r}, which has no plan; it was written by hand.")
        messages: Any = plan.render({key: in_order(value) for key, value in canary.inputs.items()})
        if digest(messages) != canary.sha256:
            raise ArtifactError(
                f"{name}: {canary.path} renders other messages than when it was compiled: `what is measured is "
                "what ships`; "
                "a library that formats values (pydantic) has changed: install the recorded version "
                f"({artifact.provenance.versions.get('pydantic', 'unknown')}), or compile again."
            )


def _check_inputs(artifact: Artifact, inputs: Mapping[str, Any]) -> None:
    known = inputs_of(artifact)
    missing = [name for name, required in known.items() if required and name not in inputs]
    if missing:
        raise RequestError(f"the input {missing[0]!r} is missing: {artifact.name} takes {', '.join(known)}.")
    unknown = [name for name in inputs if name not in known]
    if unknown and known:
        raise RequestError(
            f"the input {unknown[0]!r} is none of the program's: {artifact.name} takes {', '.join(known)}."
        )

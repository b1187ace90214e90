"""conversations(): accepted traces as chats to train a model on, each as the frozen program would have it.

The idea is DSPy's BootstrapFinetune (`Adapter.format_finetune_data`): the prompt of a call, without demonstrations
since the model is to learn them, and the reply that gives the trace's outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..signatures.errors import ArtifactError
from ..signatures.prompt import NeedsAdapter, PromptPlan
from ..signatures.signature import SignatureSpec
from .artifact import Artifact, PredictorRecord
from .exact import from_exact


@dataclass(frozen=True)
class Trace:
    """What one predictor did on one training row that the metric accepted.

    Attributes:
        path: The predictor's.
        values: Inputs and outputs by field name, as JSON.
        row: The training row, 1-based.
    """

    path: str
    values: Mapping[str, Any]
    row: int | None = None


def shipped_traces(artifact: Artifact) -> tuple[Trace, ...]:
    """Return the demonstrations in the file as traces: all that is known without the run's directory."""
    return tuple(
        Trace(record.path, {name: from_exact(value) for name, value in demo.items()})
        for record in artifact.predictors
        for demo in record.demos
    )


def conversations(artifact: Artifact, traces: Sequence[Trace], *, demos: bool = False) -> Iterator[dict[str, Any]]:
    """Yield one `{"messages": [...]}` for each trace that supplies every field of its predictor.

    Args:
        artifact: Whose instructions and formats are learned.
        traces: What to learn from.
        demos: Whether the prompts show the artifact's demonstrations, a trace's own left out.

    Raises:
        ArtifactError: If the artifact has no predictor of a trace's path: they are of another program.
    """
    records = {record.path: record for record in artifact.predictors}
    for trace in traces:
        if trace.path not in records:
            raise ArtifactError(
                f"{artifact.name} has no predictor {trace.path}: `traces are of the artifact's own program`; name the "
                "run that made it with --run."
            )
        record = records[trace.path]
        if record.signature is None or record.plan is None:
            continue
        signature = SignatureSpec.from_json(record.signature).with_instruction(record.instruction)
        if all(trace.values.get(field.name) is not None for field in signature.fields):
            yield _chat(record, signature, trace, demos)


def _chat(record: PredictorRecord, signature: SignatureSpec, trace: Trace, demos: bool) -> dict[str, Any]:
    values = dict(trace.values)
    shown = [{name: from_exact(value) for name, value in demo.items()} for demo in record.demos] if demos else []
    try:
        plan = PromptPlan.build(signature, format=record.format, demos=[demo for demo in shown if demo != values])
        asked = plan.render({field.name: values[field.name] for field in signature.inputs})
        # The reply of a demonstration is what the format's parser reads.
        reply = PromptPlan.build(signature, format=record.format, demos=[values]).messages[-1]
    except NeedsAdapter as error:
        raise ArtifactError(f"{record.path}: a trace can't be written as a chat ({error}).") from error
    return {"messages": [*asked, {"role": "assistant", "content": reply[1]}]}

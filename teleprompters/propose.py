"""Instructions written by the prompt model, grounded in the program, the data and the traces.

The idea is MIPRO's grounded proposal (Opsahl-Ong et al., EMNLP 2024): show the prompt model the program's code, what
the predictor does, examples, and a tip that differs from proposal to proposal. One call an instruction, none wasted.
"""

from collections.abc import Sequence

import dspy

from ..compiler.rng import generator
from ..compiler.strategy import InstructionLevel, Provenance, View
from ..programs.candidate import is_text
from ..programs.program import PredictorSpec
from ..signatures.values import render_value
from .bootstrap import labelled

TIPS: tuple[tuple[str, str], ...] = (
    ("describe", "Say what each possible answer means, judging by the examples."),
    ("precise", "Be precise about what the answer must look like, and keep it short."),
    ("pitfalls", "Name the cases that are easily confused, and how to tell them apart."),
    ("steps", "Say in which order to look at the input before answering."),
    ("simple", "Use plain words, as for a new colleague."),
    ("evidence", "Say which words of the input are evidence for which answer."),
)
"""A name and a tip for each proposal, in turn."""

MOST_CHARACTERS = 6000
"""Of an instruction; a longer one is dropped, since it costs its tokens in every call."""


class WriteInstruction(dspy.Signature):
    """Write the instruction for one step of a program that calls a language model.

    The step gets its input fields and must produce its output fields. Ground the instruction in what the examples show;
    don't copy an example, and don't mention that there were any.
    """

    program_code: str = dspy.InputField(desc="the source of the program that the step belongs to")
    step: str = dspy.InputField(desc="the step's name, its input fields and its output fields")
    current_instruction: str = dspy.InputField(desc="what the step is told now")
    examples: str = dspy.InputField(desc="what the step did, or should do, on training data")
    tip: str = dspy.InputField(desc="what to pay attention to this time")
    proposed_instruction: str = dspy.OutputField(desc="the new instruction, and nothing else")


def propose(view: View) -> dict[str, tuple[InstructionLevel, ...]]:
    """Return instructions for every tunable predictor, asked for all at once."""
    wanted = [
        (spec, index)
        for spec in view.spec.predictors
        if spec.tunable and spec.signature is not None
        for index in range(view.needs.instructions)
    ]
    asked = [
        (
            {
                "program_code": view.code or "(not available)",
                "step": describe(spec),
                "current_instruction": view.start[spec.path].instruction,
                "examples": "\n\n".join(_examples(view, spec, index)) or "(none)",
                "tip": TIPS[index % len(TIPS)][1],
            },
            {"rollout_id": index, "temperature": 1.0},
        )
        for spec, index in wanted
    ]
    answers = view.runner.ask(dspy.Predict(WriteInstruction), asked)
    written: dict[str, list[InstructionLevel]] = {spec.path: [] for spec, _ in wanted}
    for (spec, index), prediction in zip(wanted, answers, strict=True):
        text = _clean(getattr(prediction, "proposed_instruction", "") if prediction is not None else "")
        known = {view.start[spec.path].instruction, *(level.text for level in written[spec.path])}
        if text and text not in known and len(text) <= MOST_CHARACTERS:
            note = f"tip {TIPS[index % len(TIPS)][0]}"
            written[spec.path].append(InstructionLevel(text, Provenance("grounded", note)))
    return {path: tuple(levels) for path, levels in written.items()}


def describe(spec: PredictorSpec) -> str:
    """Return a predictor's name and fields in words."""
    assert spec.signature is not None
    lines = [f"Step `{spec.path}`"]
    for title, fields in (("Input fields", spec.signature.inputs), ("Output fields", spec.signature.outputs)):
        lines.append(f"{title}:")
        lines += [f"- {field.name}: {field.description or field.name}" for field in fields]
    return "\n".join(lines)


def _examples(view: View, spec: PredictorSpec, index: int) -> Sequence[str]:
    """Return about twenty examples of the step as text: accepted traces and labelled rows, another draw each time."""
    assert spec.signature is not None
    signature = spec.signature
    pool = labelled(spec, view.train)
    rows = {row for _, row in pool}
    # Who looks at the traces waits for them, and for a row with labels they say nothing new.
    if any(example.row not in rows for example in view.train):
        traced = [(demo, item.example.row) for item in view.accepted for demo in item.demos.get(spec.path, ())]
        pool = pool + [(demo, row) for demo, row in traced if row not in rows]
    rng = generator(view.seed, f"propose.{spec.path}.{index}")
    chosen = [pool[int(i)][0] for i in rng.permutation(len(pool))[:EXAMPLES_SHOWN]]
    texts = []
    for demo in chosen:
        lines = []
        for field in (*signature.inputs, *signature.outputs):
            if demo.get(field.name) is not None:
                value = render_value(demo[field.name], text_field=is_text(field))
                lines.append(f"{field.name}: {value[:MOST_OF_A_VALUE]}")
        texts.append("\n".join(lines))
    return texts


EXAMPLES_SHOWN = 24
"""In one proposal's prompt."""

MOST_OF_A_VALUE = 600
"""Characters of one field's value in a proposal's prompt."""


def _clean(text: object) -> str:
    """Return the instruction without the quotes or the code fence that models like to put around it."""
    cleaned = str(text or "").strip()
    if cleaned.startswith("```") and cleaned.endswith("```") and len(cleaned) > 6:
        cleaned = cleaned.strip("`").strip()
        first, _, rest = cleaned.partition("\n")
        cleaned = rest.strip() if rest and len(first.split()) == 1 and first.isalpha() else cleaned
    if len(cleaned) > 1 and cleaned[0] == cleaned[-1] and cleaned[0] in "\"'":
        cleaned = cleaned[1:-1].strip()
    return cleaned

"""School word problems, solved by reasoning first and giving a number after.

    vitrify compile examples/gsm8k/program.py:MathWord \\
        --data "${VITRIFY_DATA:-../shared/data}/tasks/gsm8k_train.jsonl" \\
        --metric numeric:target --lm openai/gpt-4o-mini -o gsm8k.json
    vitrify run gsm8k.json -i input="Three boxes hold 12 eggs each. Seven eggs break. How many are left?"

The data also has a worked solution in `rationale`. The program doesn't use it.
"""

import dspy


class Solve(dspy.Signature):
    """Solve the word problem. Answer with a number only."""

    input: str = dspy.InputField()
    target: str = dspy.OutputField()


class MathWord(dspy.Module):
    """A word problem in, its answer out."""

    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.ChainOfThought(Solve)

    def forward(self, input: str) -> dspy.Prediction:
        """Solve one problem."""
        return self.solve(input=input)

"""Loaded: what every program out of an artifact has in common."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from ..signatures.errors import RequestError, nearest
from .artifact import Artifact, inputs_of
from .models import Model

if TYPE_CHECKING:
    from concurrent.futures import Future


class Loaded:
    """A program out of an artifact: call it with its inputs, or `await` its `acall`; any number of threads may.

    Attributes:
        artifact: The artifact.
        model: The language model that answers.
    """

    def __init__(self, artifact: Artifact, model: Model) -> None:
        self.artifact = artifact
        self.model = model

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Run the program and return its prediction."""
        raise NotImplementedError

    async def acall(self, *args: Any, **inputs: Any) -> Any:
        """Run the program without blocking the event loop."""
        raise NotImplementedError

    def batch(self, rows: Iterable[Any], *, concurrency: int = 16) -> list[Any]:
        """Run the program on rows, some at a time, and return their predictions; an error stands in its row's place.

        Args:
            rows: Mappings of the inputs, or `dspy.Example`s, whose labels are left out.
            concurrency: How many run at a time.
        """
        if not isinstance(concurrency, int) or concurrency < 1:
            raise RequestError(f"batch: `concurrency is at least 1`, got {concurrency!r:.40}.")
        import contextvars
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(concurrency) as pool:
            # Each in a copy of this context, so that what is set here (`dspy.context`) holds there.
            futures = [pool.submit(contextvars.copy_context().run, self._row, row) for row in rows]
            return [_outcome(future) for future in futures]

    def _row(self, row: Any) -> Any:
        given = row.inputs() if getattr(row, "_input_keys", None) is not None else row
        if not hasattr(given, "keys"):
            raise RequestError(f"batch: `a row is a mapping of inputs`, got {type(given).__name__}.")
        return self(**given)

    def check(self, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        """Raise RequestError unless these are the program's inputs."""
        known = list(inputs_of(self.artifact))
        takes = f"{self.artifact.name} takes {', '.join(known) or 'none'}"
        if args:
            raise RequestError(f"`inputs are given by name`, got {args[0]!r:.40} without one: {takes}.")
        missing = [name for name, required in inputs_of(self.artifact).items() if required and name not in inputs]
        unknown = [name for name in inputs if name not in known]
        if unknown and known:
            raise RequestError(
                f"the input {unknown[0]!r} is none of the program's: {takes}; {nearest(unknown[0], known)}"
            )
        if missing:
            raise RequestError(f"the input {missing[0]!r} is missing: {takes}.")

    def close(self) -> None:
        """Close the connections."""
        self.model.lm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.artifact.name}({', '.join(inputs_of(self.artifact))})>"


def _outcome(future: "Future[Any]") -> Any:
    error = future.exception()
    if error is None or isinstance(error, Exception):
        return error or future.result()
    raise error

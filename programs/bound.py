"""BoundRun: a program that needs its class, bound to what the artifact holds and run by DSPy's modules."""

import asyncio
import contextlib
import copy
import importlib
from collections.abc import Iterator
from typing import Any

from ..signatures.errors import ProgramError
from .artifact import Artifact, ClassProgram
from .frozen import Unreadable
from .lm import LMError
from .loaded import Loaded
from .models import Model


class BoundRun(Loaded):
    """A program that needs its class: every predictor in it carries what the artifact holds."""

    def __init__(self, artifact: Artifact, program: Any, model: Model, name: str) -> None:
        from .bridge import EngineLM
        from .verify import bind_artifact, compiled_adapter

        super().__init__(artifact, model)
        self.program = bind_artifact(artifact, program, name)
        self._adapter = compiled_adapter(artifact)
        self._lm = EngineLM(model.lm, **dict(model.decoding))

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Run the program and return its `dspy.Prediction`.

        Raises:
            RequestError: If an input is missing or unknown.
            LMError: If the language model can't be reached.
            Unreadable: If its replies hold no values.
        """
        self.check(args, inputs)
        with self._context():
            if hasattr(type(self.program), "forward"):
                return self.program(**inputs)
            return asyncio.run(self._only_async(inputs))

    async def acall(self, *args: Any, **inputs: Any) -> Any:
        """Run the program without blocking the event loop."""
        import dspy

        self.check(args, inputs)
        with self._context():
            if hasattr(type(self.program), "aforward"):
                return await self.program.acall(**inputs)
            return await dspy.asyncify(self.program)(**inputs)

    async def _only_async(self, inputs: dict[str, Any]) -> Any:
        return await self.program.acall(**inputs)

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        import dspy
        from dspy.utils.exceptions import AdapterParseError
        from dspy.utils.exceptions import LMError as DSPyLMError

        from .bridge import from_dspy

        try:
            # The adapter of the compile, whatever is configured here: what is measured is what ships.
            with dspy.context(lm=self._lm, adapter=self._adapter, track_usage=True):
                yield
        except AdapterParseError as error:
            text = str(error).strip().partition("\n")[0][:300]
            raise Unreadable(f"{self.artifact.name}: the model's reply has no readable values ({text}).") from error
        except DSPyLMError as error:
            raise _ours(error) or from_dspy(error, self.model.lm.name) from error


def _ours(error: BaseException | None) -> LMError | None:
    """Return the error of our language model that DSPy's stands for, where there is one."""
    while error is not None and not isinstance(error, LMError):
        error = error.__cause__ or error.__context__
    # A copy: raised from DSPy's error, which has the original below it, that one would close a circle.
    return None if error is None else copy.copy(error)


def import_program(artifact: Artifact, record: ClassProgram, allowed: tuple[str, ...], name: str) -> Any:
    """Return an instance of the class that an artifact names, if its module is allowed to be imported."""
    module, _, qualname = (record.import_path or "").partition(":")
    importable = bool(module) and not module.endswith(".py")
    if not importable or module not in allowed:
        raise ProgramError(
            f"{name} needs the class {artifact.name} to run ({record.reason}): `nothing is imported out of a file "
            f"unless you say so`; pass program={artifact.name}()"
            + (f", or allow_import=[{module!r}]." if importable else ".")
        )
    import dspy

    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module raises
        raise ProgramError(
            f"{name}: {record.import_path} can't be imported ({type(error).__name__}: {str(error)[:200]}); pass "
            "program= instead."
        ) from error
    if not isinstance(found, type) or not issubclass(found, dspy.Module):
        raise ProgramError(f"{name}: {record.import_path} is no dspy.Module; pass program= instead.")
    try:
        return found()
    except Exception as error:  # whatever the user's class raises
        raise ProgramError(
            f"{name}: {qualname}() can't be made ({type(error).__name__}: {str(error)[:200]}); pass program= instead."
        ) from error

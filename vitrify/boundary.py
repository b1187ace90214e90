"""The command line's boundary: what goes wrong becomes a sentence on stderr and an exit code, never a traceback."""

import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from .programs.lm import LMError
from .signatures.errors import VitrifyError, WorkError

WRONG_REQUEST = ("auth", "unknown_model", "bad_request", "connection")
"""Causes of a failed call that the person who made the request can mend: exit code 2."""

INTERRUPTED = 130

ONE_SIGNAL = 0.1
"""Seconds within which two signals are one: `timeout` and other launchers send theirs to a process and to its group."""

_COMPILE_EXTRA = ("dspy", "optuna", "numpy", "scipy", "datasets", "diskcache", "jinja2", "litellm")


@contextmanager
def boundary(debug: bool, *, stopped: Callable[[KeyboardInterrupt], str] = lambda stop: "stopped.") -> Iterator[None]:
    """Turn an error into a sentence on stderr and its exit code.

    Args:
        debug: Whether the traceback is shown as well.
        stopped: Gives what to say after Ctrl-C.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does; Python would complain of it once more at its end.
        _forget_stdout()
        raise typer.Exit(0) from None
    except KeyboardInterrupt as stop:
        _say(stopped(stop), debug)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - the last boundary: nothing may leave it but a sentence
        sentence, code = explain(error)
        _say(" ".join([sentence, *getattr(error, "__notes__", ())]), debug)
        raise typer.Exit(code) from None


def explain(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit code: 2 where the request was wrong, else 1."""
    if isinstance(error, LMError):
        return str(error), 2 if error.cause in WRONG_REQUEST else 1
    if isinstance(error, VitrifyError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _COMPILE_EXTRA:
        return f"this needs {error.name}, which isn't installed: run `pip install 'vitrify[compile]'`.", 2
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        wrong = isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError)
        return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}; mend that, or name another.", (
            2 if wrong else 1
        )
    what = first_line(error)
    return f"this is a bug in vitrify ({what}); please report it, with what --debug shows.", 1


def first_line(error: BaseException) -> str:
    """Return an exception's class and the first line of what it says."""
    text = str(error).strip().partition("\n")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def user_error(error: Exception, where: str) -> VitrifyError:
    """Return what a user's program or DSPy raised as one of our errors."""
    if type(error).__name__ == "AdapterParseError":
        return WorkError(f"{where}: the model's reply has no readable values ({first_line(error)}).")
    if not isinstance(error, VitrifyError):
        from dspy.utils.exceptions import LMError as DSPyLMError

        if isinstance(error, DSPyLMError):
            from .programs.bridge import from_dspy

            error = from_dspy(error, str(getattr(error, "model", None) or "the model"))
    if isinstance(error, LMError):
        # Our own client names the model, and DSPy's error about it does so again.
        error.args = (re.sub(r"^(?:the model: )?(\S+: )\1*", r"\1", str(error)),)
    if isinstance(error, VitrifyError):
        return error
    return WorkError(f"{where} raised {first_line(error)}.")


def run_app(app: Callable[[], object]) -> NoReturn:
    """Run the command line; after Ctrl-C or SIGTERM nobody waits for a server that still thinks."""
    _Signals().install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a model may write what a terminal can't show
            stream.reconfigure(errors="backslashreplace")
    code: object = 0
    try:
        app()
    except SystemExit as stop:
        code = stop.code
    except BrokenPipeError:
        _forget_stdout()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.exit(code)  # type: ignore[arg-type]  # what SystemExit held


class _Signals:
    """Ctrl-C and SIGTERM: the first is a KeyboardInterrupt in the main thread, the second ends the process at once."""

    def __init__(self) -> None:
        self._first: float | None = None

    def install(self) -> None:
        """Take both signals, but for one that whoever started us chose to ignore, as a shell does for `command &`."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self)

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            raise KeyboardInterrupt
        if now - self._first > ONE_SIGNAL:
            if os.isatty(2):
                os.write(2, b"\x1b[?25h\n")  # the cursor, which the live line hides
            os._exit(INTERRUPTED)


def _say(sentence: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    typer.echo(f"vitrify: {sentence}", err=True)


def _forget_stdout() -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no real file, as in a test
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - lives as long as the process

"""The exception tree.

VitrifyError                    anything vitrify raises on purpose
├── RequestError                the request was wrong: exit code 2, before money is spent where that can be known
│   ├── DataError               a data file, row or column
│   ├── MetricError             a metric that can't be resolved, or that returned what is no score
│   ├── ProgramError            a program that can't be loaded, lowered or bound
│   ├── ModelError              a language model's name, key or endpoint
│   └── ArtifactError           an artifact that is damaged, edited, unknown or of another program
└── WorkError                   the request was right and the work failed: exit code 1
    └── LMError                 a call to a language model failed (programs/lm.py holds its causes)

Every message is one sentence or two: which thing, the rule in backticks, the value found, what to do.
"""


class VitrifyError(Exception):
    """Anything vitrify raises on purpose; its message is meant for the person who made the request."""

    exit_code = 1


class RequestError(VitrifyError):
    """The request was wrong; the command line exits with 2."""

    exit_code = 2


class DataError(RequestError):
    """A data file, row or column that can't be used."""


class MetricError(RequestError):
    """A metric that can't be resolved, or that returned something that is no score."""


class ProgramError(RequestError):
    """A program that can't be loaded, lowered or bound."""


class ModelError(RequestError):
    """A language model's name, key or endpoint that can't be used."""


class ArtifactError(RequestError):
    """An artifact that is damaged, edited, of an unknown format, or of another program."""


class WorkError(VitrifyError):
    """The request was right and the work failed; the command line exits with 1."""


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return a clause that names the known name closest to `name`, or lists the known ones; never empty."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean `{close[0]}`?"
    if not known:
        return "there are none."
    shown = ", ".join(f"`{item}`" for item in list(known)[:12])
    return f"there are: {shown}" + (", ..." if len(known) > 12 else ".")

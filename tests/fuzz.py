"""A fuzzer of the loader: files of goldens, mutated as bytes, as JSON and as artifacts whose digest is mended.

What a file does while it is read, loaded and called is watched: it opens nothing, connects nowhere, starts nothing and
imports nothing but our own and pydantic's parts; it raises our errors alone.
"""

import contextlib
import gc
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrify.programs.artifact import parse_artifact
from vitrify.programs.lm import Capabilities, LMError, Reply, Request, Usage
from vitrify.programs.models import Model
from vitrify.programs.runtime import run_artifact
from vitrify.signatures.canonical import NotCanonical, digest
from vitrify.signatures.errors import ArtifactError, ProgramError, RequestError, WorkError

from tests.strategies import NASTY

GOLDEN = Path(__file__).parent / "golden" / "vitrify-1"
SMALL = tuple((GOLDEN / f"{name}.artifact.json").read_bytes() for name in ("baseline", "helpdesk", "orders-json"))
"""Files to mutate: the smaller, the oftener."""
WEIGHTS = (12, 1, 1)
STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2**53, -(2**53), 1e308, 1.5, -0.0, "", "x" * 5000, [], {}, [[]], [None] * 50, *NASTY,
    "\u202e", "\x1b[2J", "__base__", "__init__", "$object", "self", "chat", "json", "../../etc/passwd", "http://x",
    "os:system", "{0.__class__}", "[" * 300, "9" * 5000, "NaN", '{"a": 1, "a": 2}', "(a+)+$", {"kind": "ref"},
    {"$number": "1e999"}, {"$object": [["a", 1], ["a", 2]]}, {"kind": "list", "items": "str"}, {"name": "message"},
    {"text": [{"name": "message"}] * 40}, {"value": "1"}, {"factory": "dict"}, {"member": '["A", "B"]'},
]  # fmt: skip
BYTES = [
    b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\x1f\x8b", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"NaN",
    b"1e999", b"\\ud800", b"9" * 5000, b"[" * 300, b'{"a":' * 200, b"null", b"-", b"0", b" ", b"\xed\xa0\x80",
    b"\xc0\x80", b"\\u0000",
]  # fmt: skip
REPLIES = [
    "",
    "x",
    "{}",
    '{"team": "billing"}',
    "[[ ## team ## ]]\nbilling\n\n[[ ## completed ## ]]",
    "[" * 200,
    "9" * 100,
]
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.",
    "shutil.",
    "ctypes.",
    "urllib.",
    "ftplib.",
    "smtplib.",
    "tempfile.",
    "webbrowser.",
)
OURS = re.compile(
    r"(vitrify|pydantic|pydantic_core|json_repair|annotated_types|typing_extensions|typing_inspection)(\.|$)"
)


@dataclass
class Figures:
    """What a fuzz saw.

    Attributes:
        inputs: Files tried.
        accepted: Those that loaded; each was then called.
        refused: Others, by cause.
        slowest: Seconds of the slowest one's processor time.
        growth: Bytes by which the process grew at its peak.
    """

    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    growth: int = 0

    def lines(self) -> list[str]:
        causes = [f"  {count:9,d}  {cause}" for cause, count in self.refused.most_common(25)]
        return [
            f"{self.inputs:,} files: {self.accepted:,} accepted and called, {self.refused.total():,} refused; the "
            f"slowest took {1000 * self.slowest:.0f} ms, memory rose by {self.growth / 2**20:.0f} MB at most; causes:",
            *causes,
        ]


class Stub:
    """Answers at once, with one reply after the other."""

    name, endpoint, capabilities = "stub", "", Capabilities()

    def __init__(self) -> None:
        self._count = 0

    def complete(self, request: Request) -> Reply:
        self._count += 1
        return Reply(REPLIES[self._count % len(REPLIES)], Usage(), self.name)

    async def acomplete(self, request: Request) -> Reply:
        return self.complete(request)

    def close(self) -> None:
        pass


class Watch:
    """Notes what the interpreter is asked to do in `with watch:`. A hook can't be taken away, so one serves all."""

    def __init__(self) -> None:
        self._on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self._on = True

    def __exit__(self, *exc: object) -> None:
        self._on = False

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event.startswith(FORBIDDEN) and event not in ("os.listdir", "os.scandir"):
            self.seen.append(f"{event} {args!r:.100}")
        elif event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so")):
            self.seen.append(f"open {args!r:.100}")
        elif event == "import" and not OURS.match(str(args[0])):
            # Python's own parts, json's decoder say, are imported where they are used first.
            self.seen += [f"import {args[0]!r:.100}"] * (str(args[0]).partition(".")[0] not in sys.stdlib_module_names)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys and indices that lead to every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


class Fuzzer:
    """Makes hostile files out of good ones, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"artifact/{seed}")
        self._values = [json.loads(data) for data in SMALL]
        # Without canaries more of what is edited is loaded.
        self._texts = [json.dumps({**value, "canaries": []}) for value in self._values]
        self._places = [list(places(value)) for value in self._values]
        # Half of the edits go where reading is deepest.
        self._deep = [
            [path for path in found if path[0] in ("program", "predictors", "canaries", "inputs")]
            for found in self._places
        ]

    def make(self) -> bytes:
        """Return the next file."""
        return self._chance.choices((self._bytes, self._json, self._artifact), (3, 2, 5))[0]()

    def _which(self) -> int:
        return self._chance.choices(range(len(SMALL)), WEIGHTS)[0]

    def _bytes(self) -> bytes:
        """Return a file with some bytes changed, taken away, doubled or put in."""
        data = bytearray(SMALL[self._which()])
        for _ in range(self._chance.choice((1, 1, 1, 2, 5))):
            start = self._chance.randrange(len(data) + 1)
            end = start + self._chance.choice((0, 1, 1, 8, 500))
            match self._chance.randrange(5):
                case 0:
                    data[start:end] = self._chance.choice(BYTES)
                case 1:
                    data[start:end] = self._chance.randbytes(end - start)
                case 2:
                    data[start:start] = data[start:end]
                case 3:
                    del data[start:]
                case 4:
                    data += self._chance.choice(BYTES)
        return bytes(data)

    def _json(self) -> bytes:
        """Return JSON of another spelling, its digest not mended."""
        value = self._edited()
        return json.dumps(
            value, indent=self._chance.choice((None, 1)), ensure_ascii=self._chance.random() < 0.5
        ).encode("utf-8", "surrogatepass")

    def _artifact(self) -> bytes:
        """Return an edited artifact with a mended digest."""
        value = self._edited()
        content = {key: item for key, item in value.items() if key != "sha256"} if isinstance(value, dict) else {}
        try:
            return json.dumps({**content, "sha256": digest(content)}).encode()
        except (NotCanonical, RecursionError):
            return b"{}"

    def _edited(self) -> Any:
        index, chance = self._which(), self._chance
        value = json.loads(SMALL[index] if chance.random() < 0.5 else self._texts[index])
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            path = chance.choice(self._deep[index] if chance.random() < 0.7 else self._places[index])
            try:
                owner = at(value, path[:-1])
                self._edit(owner, path[-1], at(self._values[index], chance.choice(self._places[index])))
            except (LookupError, TypeError):
                continue  # an earlier edit took the place away
        return value

    def _edit(self, owner: Any, key: Any, other: Any) -> None:
        chance = self._chance
        match chance.randrange(7):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, list):
                owner[key:key] = [owner[key]] * chance.choice((1, 1, 20))
            case 2:
                owner[key] = json.loads(json.dumps(other))
            case 3 if isinstance(owner, dict):
                owner[chance.choice(["$object", "$number", "kind", "path", "pattern", "x"])] = other
            case 4 if isinstance(owner, dict):
                owner[str(chance.choice(STRANGE))[:50]] = owner.pop(key)
            case 5:
                for _ in range(chance.choice((1, 3, 100))):
                    owner[key] = chance.choice(
                        ([owner[key]], {"list": [owner[key]]}, {"kind": "list", "items": owner[key]})
                    )
            case _:
                owner[key] = chance.choice(STRANGE)


def cause_of(error: Exception) -> str:
    """Return what an error says, without what it quotes."""
    said = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "#", str(error).partition("\n")[0].removeprefix("x.json"))
    rule = re.search(r"`[^`]*`", said)
    return f"{said[:34].strip(' :')} ... {rule.group()[:60] if rule and '`' not in said[:34] else ''}"


def fuzz(count: int, seed: int, watch: Watch, tell: Callable[[str], None] = lambda line: None) -> Figures:
    """Try `count` files and return the figures; AssertionError for a file that did something."""
    fuzzer, figures, stub = Fuzzer(seed), Figures(), Model(Stub())
    gc.collect()
    before = peak(anew=True)
    for number in range(count):
        data = fuzzer.make()
        began = time.process_time()
        with watch:
            problem = tried(data, stub, figures)
        figures.slowest = max(figures.slowest, time.process_time() - began)
        figures.inputs += 1
        assert not problem and not watch.seen, (seed, number, problem, watch.seen[:3], data[:2000])
        if number % 10_000 == 9_999:
            tell(f"{number + 1:,} files")
    figures.growth = peak() - before
    return figures


def peak(*, anew: bool = False) -> int:
    """Return the most bytes of memory that this process has held, or hold it has `anew` from here on."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def tried(data: bytes, model: Model, figures: Figures) -> str:
    """Read, load and call one file, and count what came of it; return what must not happen."""
    try:
        program = run_artifact(parse_artifact(data, "x.json"), model, name="x.json")
    except (ArtifactError, ProgramError) as error:
        figures.refused[cause_of(error)] += 1
        str(error).encode()  # it can be printed
        return "" if len(str(error)) < 6000 else "a message without an end"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    figures.accepted += 1
    with contextlib.suppress(RequestError, WorkError, LMError):
        try:
            program(**{item.name: "my card is gone" for item in program.artifact.inputs})
        except (RequestError, WorkError):
            raise
        except Exception as error:
            return f"in the call: {type(error).__name__}: {error}"
    return ""

"""A small OpenAI-compatible server in a process of its own, for benchmarks: as little of the two cores as can be.

    python benchmarks/stub_server.py --latency 0.2 --sigma 0.8

It prints its address, answers every chat completion from the prompt's own output markers after a wait, and tells at
`/stats` how many requests it served, how many were in flight at most, for how many seconds it was busy in all, and how
much CPU that took. With `--rows FILE --input NAME` it is a model that can learn: where the prompt ends with an input of
that file, it knows that row's outputs or not, by how hard the row is, by the demonstrations, and by the instruction.
"""

import argparse
import asyncio
import json
import math
import random
import re
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

MARKER = re.compile(r"`\[\[ ## (\w+) ## \]\]`(?: \(must be formatted as a valid Python (Literal\[.*?\])\))?")
LITERAL = re.compile(r"'([^']*)'")

BASE, DEMOS, INSTRUCTION, HARD, LUCK = -0.4, 0.3, 0.4, 1.2, 0.6
"""In logits: without demonstrations; for each doubling of them; and the standard deviations of what an instruction is
worth, of how hard a row is, and of what no prompt explains."""


class Stub(asyncio.Protocol):
    """One connection; keep-alive, one request after the other."""

    def __init__(self, state: "State") -> None:
        self.state = state
        self.buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect bytes until a request is whole, and answer it."""
        self.buffer += data
        while True:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.answer(head, rest[:length])

    def answer(self, head: bytes, body: bytes) -> None:
        """Answer one request, after the wait."""
        if head.startswith(b"GET /stats"):
            self.send(json.dumps(self.state.stats()).encode())
            return
        state, wait = self.state, self.state.wait(body)
        state.begin()
        loop = asyncio.get_running_loop()
        if wait > 0:
            loop.call_later(wait, self.finish, body, wait)
        else:
            self.finish(body, 0.0)

    def finish(self, body: bytes, wait: float) -> None:
        """Send the reply."""
        self.state.end(wait)
        if not self.transport.is_closing():
            self.send(self.state.reply(body))

    def send(self, body: bytes) -> None:
        """Send a JSON body."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)


class Known:
    """The rows whose outputs the model may know.

    Args:
        file: JSON lines.
        name: The column that stands in a prompt.
    """

    def __init__(self, file: str, name: str) -> None:
        rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        self._rows = {row[name]: row for row in rows}
        self._input = re.compile(rf"\[\[ ## {name} ## \]\]\n(.*?)\n\n", re.DOTALL)

    def output(self, name: str, messages: list[dict[str, str]], luck: float) -> str | None:
        """Return a row's output where the model knows it, else None: by the row, the demonstrations, the instruction.

        Args:
            name: Of the output.
            messages: The prompt.
            luck: What no prompt explains.
        """
        found = self._input.search(messages[-1]["content"])
        row = self._rows.get(found.group(1)) if found else None
        if row is None or name not in row:
            return None
        hard = random.Random(zlib.crc32(f"{name} {row}".encode())).gauss(0, HARD)
        instruction = random.Random(zlib.crc32(messages[0]["content"].encode())).gauss(0, INSTRUCTION)
        demonstrations = DEMOS * math.log2(1 + (len(messages) - 2) / 2)
        return str(row[name]) if BASE + demonstrations + instruction + luck > hard else None


class State:
    """What the server counts."""

    def __init__(self, latency: float, sigma: float, fixed: bool, known: "Known | None" = None) -> None:
        self.latency = latency
        self.sigma = sigma
        self.fixed = fixed
        self.known = known
        self.served = self.flying = self.peak = 0
        self.busy = 0.0
        self.came: Counter[int] = Counter()
        self.first = self.last = 0.0
        self.born = time.process_time()

    def wait(self, body: bytes) -> float:
        """Return the wait in seconds, a function of the request and of how often it came: lognormal, by the median."""
        if not self.sigma:
            return self.latency
        key = zlib.crc32(body)
        self.came[key] += 1
        return self.latency * math.exp(self.sigma * random.Random(key + 1_000_003 * self.came[key]).gauss(0, 1))

    def begin(self) -> None:
        """Count a request in."""
        now = time.monotonic()
        self.first = self.first or now
        self.flying += 1
        self.peak = max(self.peak, self.flying)

    def end(self, wait: float) -> None:
        """Count a request out."""
        self.flying -= 1
        self.served += 1
        self.busy += wait
        self.last = time.monotonic()

    def reply(self, body: bytes) -> bytes:
        """Return a chat completion: fixed, or with a value for every output marker, chosen by the request."""
        if self.fixed:
            return FIXED
        request = json.loads(body)
        prompt = request["messages"][-1]["content"]
        tail = prompt[prompt.rfind("Respond with") :]
        chance = random.Random(zlib.crc32(body))
        parts = []
        for name, literal in MARKER.findall(tail):
            if name != "completed":
                choices = LITERAL.findall(literal)
                value = chance.choice(choices) if choices else f"{name} {chance.random():.6f}"
                if self.known is not None and choices:
                    value = self.known.output(name, request["messages"], chance.gauss(0, LUCK)) or value
                parts.append(f"[[ ## {name} ## ]]\n{value}")
        return completion("\n\n".join([*parts, "[[ ## completed ## ]]"]), len(prompt) // 4)

    def stats(self) -> dict[str, float]:
        """Return the counts."""
        return {
            "served": self.served,
            "flying": self.flying,
            "peak": self.peak,
            "busy": self.busy,
            "span": self.last - self.first,
            "cpu": time.process_time() - self.born,
        }


def completion(text: str, tokens: int) -> bytes:
    """Return a chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": tokens, "completion_tokens": len(text) // 4, "total_tokens": tokens + len(text) // 4}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice], "usage": usage}
    return json.dumps(body).encode()


FIXED = completion("[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]", 100)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until stdin is closed."""
    known = Known(arguments.rows, arguments.input) if arguments.rows else None
    state = State(arguments.latency, arguments.sigma, arguments.fixed, known)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(state), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--sigma", type=float, default=0.0)
    parser.add_argument("--fixed", action="store_true")
    parser.add_argument("--rows")
    parser.add_argument("--input")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

"""Where a call spends its instructions: counted by valgrind, so that a busy machine doesn't matter.

    python benchmarks/counts.py            # about eight minutes; needs valgrind
    python benchmarks/counts.py --steps connections,bound-0

Each step is run in a process of its own under callgrind, with 200 calls and with 700; what is printed is the
difference per call, for the client alone (the server isn't counted). Instructions aren't time, but six of them took
about a nanosecond here, and unlike time they are nearly the same in every run. What the system does for the process
isn't among them: neither its network nor its changes of thread.
"""

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

STEPS = {
    "aiohttp alone, without a time limit": "bare-untimed",
    "aiohttp alone, with its own time limits": "bare",
    "our connections alone": "connections",
    "the client: JSON both ways, retries, one timer": "client",
    "a sealed program, 0 demonstrations": "sealed-0",
    "a sealed program, 8 demonstrations": "sealed-8",
    "a bound predictor in 16 threads, 0 demonstrations": "bound-0",
    "a bound predictor in 16 threads, 8 demonstrations": "bound-8",
}
SYSTEM = {"role": "system", "content": "x" * 600}
FLYING = 16
# Whoever compiles a module does so in every run, and not only in the first.
ENVIRON = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


async def calls(call: Callable[[str], Awaitable[Any]], count: int) -> None:
    """Make some calls, 16 in flight."""
    waiting = iter(range(count))

    async def worker() -> None:
        for number in waiting:
            await call(f"What is the capital of the country that was visited in year {number}?")

    await asyncio.gather(*(worker() for _ in range(FLYING)))


async def bare(url: str, count: int, timed: bool) -> None:
    """Post and read, and nothing else."""
    import aiohttp
    from yarl import URL

    times = aiohttp.ClientTimeout(total=180 if timed else None, sock_connect=15)
    connector, jar = aiohttp.TCPConnector(limit=0), aiohttp.DummyCookieJar()
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": "Bearer none"}
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar, timeout=times, headers=headers) as session:
        address, body = URL(f"{url}/chat/completions"), b"x" * 800

        async def call(question: str) -> None:
            async with session.post(address, data=body, allow_redirects=False) as response:
                await response.read()

        await calls(call, 200)
        await calls(call, count)


async def connections(url: str, count: int) -> None:
    """Post and read over our own connections, and nothing else."""
    from vitrify.programs.connections import Connections
    from vitrify.programs.site import Site

    headers = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": "Bearer none"}
    site = Site("openai/stub", f"{url}/chat/completions", headers, 180.0, None)
    made, body = Connections(site, asyncio.get_running_loop()), b"x" * 800
    await ours(lambda question: made.post(body), count)
    await made.close()


def bound(url: str, demos: int, count: int) -> None:
    """Call a bound predictor in threads."""
    from engine import Steady, bound_calls

    bound_calls(url, demos, FLYING, Steady(100, count))


async def ours(call: Callable[[str], Awaitable[Any]], count: int) -> None:
    """Make calls until the loop has its own connections, and then those that count."""
    await calls(call, 200)
    await calls(call, count)


def child(step: str, url: str, count: int, folder: str) -> None:
    """Run one step; this is what valgrind counts."""
    if step.startswith("bare"):
        asyncio.run(bare(url, count, step == "bare"))
    elif step == "connections":
        asyncio.run(connections(url, count))
    elif step.startswith("bound"):
        bound(url, int(step[-1]), count)
    elif step == "client":
        from vitrify.programs.lm import Request
        from vitrify.programs.openai import OpenAICompatible

        client = OpenAICompatible("openai/stub", api_base=url, api_key="none")
        ask = lambda q: client.acomplete(Request("openai/stub", (SYSTEM, {"role": "user", "content": q})))  # noqa: E731
        asyncio.run(ours(ask, count))
        client.close()
    else:
        from vitrify.programs.runtime import load

        loaded = load(Path(folder) / f"{step[-1]}.json", lm="openai/stub", api_base=url, api_key="none")
        asyncio.run(ours(lambda q: loaded.acall(question=q), count))
        loaded.close()


def instructions(step: str, url: str, count: int, folder: str) -> int:
    """Return the instructions of one step in a process of its own."""
    words = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, __file__]
    words += ["--step", step, "--url", url, "--count", str(count), "--folder", folder]
    ran = subprocess.run(words, capture_output=True, text=True, check=True, env=ENVIRON)
    found = re.search(r"Collected : (\d+)", ran.stderr)
    assert found is not None, ran.stderr[-500:]
    return int(found[1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default=",".join(STEPS.values()), help="which, with commas between; default: all")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        child(arguments.step, arguments.url, arguments.count, arguments.folder)
        return
    from engine import sealed_artifact, stub

    print("| step | instructions per call |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, stub(fixed=True) as url:
        for demos in (0, 8):
            sealed_artifact(Path(folder), demos)
        for name, step in STEPS.items():
            if step not in arguments.steps.split(","):
                continue
            counted = [instructions(step, url, count, folder) for count in (200, 700)]
            print(f"| {name} | {(counted[1] - counted[0]) // 500:,} |", flush=True)


if __name__ == "__main__":
    main()

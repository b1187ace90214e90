"""Effects: lookups are made once a run, calls with side effects once ever; over kills, threads, tasks and DSPy."""

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitrify.programs.effects import cached, once
from vitrify.programs.recorder import (
    BEGUN,
    MISSING,
    SETTING,
    Record,
    RecordedFailure,
    Unknown,
    Unrepeatable,
    recording,
)
from vitrify.signatures.errors import ProgramError, WorkError

SOON = 10.0


class Memory:
    """A recorder that keeps JSON texts, as a run directory would."""

    def __init__(self) -> None:
        self.lines: dict[str, str | None] = {}
        self.names: list[str] = []

    def recall(self, key: str) -> Any:
        if key not in self.lines:
            return MISSING
        text = self.lines[key]
        return BEGUN if text is None else json.loads(text)

    def begin(self, key: str, name: str) -> None:
        assert key not in self.lines
        self.lines[key] = None
        self.names.append(name)

    def finish(self, key: str, value: Any) -> None:
        self.lines[key] = json.dumps(value)


class Full(Memory):
    """A recorder whose disk is full."""

    def finish(self, key: str, value: Any) -> None:
        raise WorkError("the disk is full")


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def record(memory: Memory) -> Record:
    return Record(memory)


calls: list[Any]


@pytest.fixture(autouse=True)
def no_calls() -> None:
    global calls
    calls = []


@cached
def search(query: str, k: int = 3, **more: Any) -> Any:
    """Look it up."""
    calls.append((query, k))
    return [f"{query} {i}" for i in range(k)]


@once
def book(room: Any = None, *others: Any) -> Any:
    """Book it."""
    calls.append(room)
    if isinstance(room, Exception):
        raise room
    return {"booked": room, "number": len(calls)}


@cached
async def asearch(query: str) -> str:
    calls.append(query)
    await asyncio.sleep(0.01)
    return query.upper()


@once
async def abook(room: str) -> str:
    calls.append(room)
    await asyncio.sleep(0.01)
    return f"{room} {len(calls)}"


def test_outside_a_compile_they_are_the_functions() -> None:
    assert search("a") == search("a")
    assert [("a", 3)] * 2 == calls
    token = object()
    assert {"booked": token, "number": 3} == book(token)  # any argument, any result
    assert "B" == asyncio.run(asearch("b"))
    assert "Look it up." == search.__doc__
    assert "search" == search.__name__
    assert ["query", "k", "more"] == list(inspect.signature(search).parameters)
    assert inspect.iscoroutinefunction(abook)
    assert not inspect.iscoroutinefunction(book)


def test_a_lookup_is_made_once_a_run(record: Record) -> None:
    for identity in ("one", "two"):
        with recording(record, identity):
            assert ["a 0", "a 1", "a 2"] == search("a") == search(query="a")
            assert ["a 0"] == search("a", k=1)
    assert [("a", 3), ("a", 1)] == calls


def test_what_is_returned_is_the_caller_s_own() -> None:
    class Objects(Memory):
        """A recorder that keeps the values themselves."""

        def __init__(self) -> None:
            super().__init__()
            self.values: dict[str, Any] = {}

        def recall(self, key: str) -> Any:
            return self.values.get(key, MISSING)

        def finish(self, key: str, value: Any) -> None:
            self.values[key] = value

    with recording(Record(Objects()), "one"):
        for _ in range(3):
            found = search("a")
            assert 3 == len(found)
            found.append("mine")


def test_a_lookup_that_fails_may_be_made_again(record: Record) -> None:
    fails = [True]

    @cached
    def flaky(query: str) -> str:
        calls.append(query)
        if fails.pop() if fails else False:
            raise OSError("no route")
        return query

    with recording(record, "one") as evaluation:
        with pytest.raises(OSError, match="no route"):
            flaky("a")
        assert "a" == flaky("a") == flaky("a")
    assert ["a", "a"] == calls
    assert evaluation.refusal is None


def test_a_call_is_made_once_for_each_evaluation_and_position(record: Record) -> None:
    with recording(record, "one"):
        first, second, other = book("x"), book("x"), book("y")
    with recording(record, "two"):
        book("x")
    assert ["x", "x", "y", "x"] == calls
    with recording(record, "one"):  # the same evaluation, taken up again; in another order
        assert (other, first, second) == (book("y"), book("x"), book("x"))
        assert 4 == len(calls)
        book("x")  # a third one was never made
    assert 5 == len(calls)


def test_it_is_written_down_before_and_after(memory: Memory) -> None:
    seen: list[Any] = []

    @once
    def look() -> int:
        seen.extend(memory.lines.values())
        return 1

    with recording(Record(memory), "one"):
        look()
    assert [None] == seen
    assert ['{"value": 1}'] == list(memory.lines.values())
    assert ["test_it_is_written_down_before_and_after.<locals>.look"] == [
        n.partition("test_effects.")[2] for n in memory.names
    ]


def test_a_call_cut_short_is_not_repeated(memory: Memory) -> None:
    with recording(Record(memory), "one"), pytest.raises(KeyboardInterrupt):

        @once
        def book(room: str, *, price: float) -> None:
            calls.append(room)
            raise KeyboardInterrupt

        book("r" * 200, price=1.5)
    assert [None] == list(memory.lines.values())
    with recording(Record(memory), "one") as evaluation:  # a new process
        with pytest.raises(Unrepeatable) as caught:
            book("r" * 200, price=1.5)
        assert caught.value is evaluation.refusal
    assert 1 == len(calls)
    assert "book(room='rrr" in str(caught.value)
    assert "price=1.5" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "`a call marked vitrify.once is made at most once`" in str(caught.value)


@pytest.mark.parametrize(
    "error", [ValueError("no room"), KeyError("x"), FileNotFoundError(2, "gone"), LookupError(), TimeoutError("late")]
)
def test_a_failure_of_python_s_own_is_raised_again_as_it_was(error: Exception) -> None:
    memory = Memory()

    @once
    def fail() -> None:
        calls.append(1)
        raise error

    raised = []
    for _ in range(2):
        with recording(Record(memory), "one") as evaluation:
            with pytest.raises(type(error)) as caught:
                fail()
            raised.append(caught.value)
            assert evaluation.refusal is None  # it is the function's answer
    assert error is raised[0]
    assert (type(error), str(error), error.args) == (type(raised[1]), str(raised[1]), raised[1].args)
    assert 1 == len(calls)


class Trouble(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (Trouble("no\udc80 room"), "Trouble: no? room"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), "UnicodeDecodeError: 'utf-8' codec"),
        (ExceptionGroup("some", [ValueError("x")]), "ExceptionGroup: some"),
    ],
)
def test_another_failure_is_told(memory: Memory, error: Exception, shown: str) -> None:
    @once
    def fail() -> None:
        raise error

    with recording(Record(memory), "one"), pytest.raises(type(error)):
        fail()
    with recording(Record(memory), "one"), pytest.raises(RecordedFailure) as caught:
        fail()
    assert shown in str(caught.value)
    assert "fail raised " in str(caught.value)


def test_what_ends_the_compile_is_no_answer(memory: Memory) -> None:
    @once
    def asks() -> None:
        raise WorkError("the budget is spent")

    with recording(Record(memory), "one"), pytest.raises(WorkError, match="budget"):
        asks()
    assert [None] == list(memory.lines.values())


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1}, float("nan"), b"x", {1: 2}, object(), "\udc80", [[object()]]],
    ids=["tuple", "set", "nan", "bytes", "number-key", "object", "surrogate", "nested"],
)
@pytest.mark.parametrize("marked", [search, book])
def test_arguments_are_json(record: Record, marked: Callable[..., Any], value: Any) -> None:
    with recording(record, "one") as evaluation:
        with pytest.raises(ProgramError, match="`arguments and result of a function") as caught:
            marked(value)
        assert marked.__name__ in str(caught.value)
        assert caught.value is evaluation.refusal
    assert [] == calls


def test_arguments_may_be_passed_in_any_way(record: Record) -> None:
    with recording(record, "one"):
        search("a", more={"x": [1]})
        search("a", more={"x": [1]})
        assert [("a", 3)] == calls
        search("a", more={"x": [2]})
        assert 2 == len(calls)
        for _ in range(2):
            search("b", one={"c": 1, "d": 2}, two=2)
            search("b", two=2, one={"d": 2, "c": 1})
        assert 3 == len(calls)
        book("x", "y", "z")
        with pytest.raises(TypeError):
            search()  # type: ignore[call-arg]
    assert 4 == len(calls)


@pytest.mark.parametrize("mark", [cached, once])
def test_results_are_json(memory: Memory, mark: Any) -> None:
    def odd() -> Any:
        return object()

    returns = mark(odd)
    with recording(Record(memory), "one") as evaluation:
        with pytest.raises(ProgramError, match="returned <object") as caught:
            returns()
        assert caught.value is evaluation.refusal
    assert [] == [text for text in memory.lines.values() if text is not None]


def test_a_disk_that_is_full_sticks(memory: Memory) -> None:
    with recording(Record(Full()), "one") as evaluation:
        with pytest.raises(WorkError, match="full"):
            search("a")
        assert evaluation.refusal is not None


def test_a_damaged_record_is_said(memory: Memory) -> None:
    with recording(Record(memory), "one"):
        search("a")
    memory.lines = dict.fromkeys(memory.lines, "[]")
    with recording(Record(memory), "one"), pytest.raises(WorkError, match="damaged"):
        search("a")


class Index:
    """Retrieval as methods."""

    def __init__(self, name: str, k: int = 1) -> None:
        self.name, self.k = name, k
        self._asked = 0
        self.words = ["not", "plain"]

    @cached
    def find(self, query: str) -> str:
        calls.append(self.name)
        self._asked += 1
        return f"{self.name} {query}"

    @classmethod
    @cached
    def names(cls, query: str) -> str:
        calls.append(cls)
        return query

    @staticmethod
    @cached
    def split(query: str) -> list[str]:
        calls.append(query)
        return query.split()

    @once
    async def add(self, word: str) -> int:
        self.words.append(word)
        return len(self.words)


def test_methods(record: Record) -> None:
    with recording(record, "one"):
        wiki, faq = Index("wiki"), Index("faq")
        assert ("wiki q", "faq q", "wiki q") == (wiki.find("q"), faq.find("q"), Index("wiki").find("q"))
        assert ["wiki", "faq"] == calls
        assert "q" == Index.names("q") == wiki.names("q")
        assert ["a", "b"] == Index.split("a b") == wiki.split("a b")
        assert 4 == len(calls)
        assert 3 == asyncio.run(wiki.add("x"))
    with recording(record, "one"):
        assert 3 == asyncio.run(wiki.add("x"))
    assert ["not", "plain", "x"] == wiki.words


def test_nested_functions_are_told_apart_or_refused(record: Record) -> None:
    def make(name: str) -> Callable[[str], str]:
        @cached
        def find(query: str) -> str:
            return f"{name} {query}"

        return find

    def opaque(index: dict[str, str]) -> Callable[[str], str]:
        @cached
        def find(query: str) -> str:
            return index[query]

        return find

    with recording(record, "one") as evaluation:
        assert ("a q", "b q") == (make("a")("q"), make("b")("q"))
        first = opaque({"q": "1"})
        assert "1" == first("q") == first("q")
        with pytest.raises(ProgramError, match="several functions"):
            opaque({"q": "2"})("q")
        assert evaluation.refusal is not None


@pytest.mark.parametrize("mark", [cached, once])
def test_what_cannot_be_marked(mark: Any) -> None:
    def numbers() -> Any:
        yield 1

    async def anumbers() -> Any:
        yield 1

    things: list[Any] = [3, classmethod(cast(Any, len)), staticmethod(len), numbers, anumbers]
    for thing in things:
        with pytest.raises(ProgramError, match=r"vitrify\.(cached|once) `marks a function"):
            mark(thing)


def test_two_threads_that_ask_at_once_make_it_once(record: Record) -> None:
    inside, go = threading.Event(), threading.Event()

    @cached
    def slow(query: str) -> str:
        calls.append(query)
        inside.set()
        assert go.wait(SOON)
        return query.upper()

    def ask(identity: int) -> str:
        with recording(record, str(identity)):
            return slow("a")

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, i) for i in range(8)]
        assert inside.wait(SOON)
        go.set()
        assert ["A"] * 8 == [future.result(SOON) for future in futures]
    assert ["a"] == calls


def test_those_who_waited_for_a_failure_make_it_themselves(record: Record) -> None:
    inside, go = threading.Event(), threading.Event()

    @cached
    def slow(query: str) -> str:
        calls.append(query)
        inside.set()
        assert go.wait(SOON)
        if len(calls) < 3:
            raise OSError
        return query

    def ask(identity: int) -> str | None:
        with recording(record, str(identity)):
            try:
                return slow("a")
            except OSError:
                return None

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, i) for i in range(4)]
        assert inside.wait(SOON)
        go.set()
        assert [None, None, "a", "a"] == sorted((future.result(SOON) for future in futures), key=str)
    assert 3 == len(calls)


def test_the_same_evaluation_twice_at_once_calls_once(record: Record) -> None:
    def evaluate() -> Any:
        with recording(record, "one"):
            return book("x"), book("x")

    with ThreadPoolExecutor(4) as pool:
        results = {json.dumps(future.result(SOON)) for future in [pool.submit(evaluate) for _ in range(4)]}
    assert 1 == len(results)
    assert ["x", "x"] == calls


def test_tasks_that_ask_at_once_make_it_once(record: Record) -> None:
    async def evaluate(identity: str) -> list[str]:
        with recording(record, identity):
            return list(await asyncio.gather(asearch("a"), asearch("a"), abook("x"), abook("x")))

    async def both() -> list[list[str]]:
        return list(await asyncio.gather(evaluate("one"), evaluate("two")))

    found = asyncio.run(both())
    assert ["A", "A"] == found[0][:2] == found[1][:2]
    assert (1, 4) == (calls.count("a"), calls.count("x"))
    again = asyncio.run(both())
    assert [sorted(values) for values in found] == [sorted(values) for values in again]
    assert 5 == len(calls)


def test_a_cancelled_lookup_lets_the_next_one_make_it(record: Record) -> None:
    async def run() -> str:
        with recording(record, "one"):
            first = asyncio.ensure_future(asearch("a"))
            waits = asyncio.ensure_future(asearch("a"))
            await asyncio.sleep(0.001)
            first.cancel()
            return await waits

    assert "A" == asyncio.run(asyncio.wait_for(run(), SOON))
    assert ["a", "a"] == calls


def test_a_cancelled_call_is_not_repeated(record: Record) -> None:
    async def run() -> None:
        with recording(record, "one"):
            task = asyncio.ensure_future(abook("x"))
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())
    with recording(record, "one"), pytest.raises(Unrepeatable):
        asyncio.run(abook("x"))
    assert ["x"] == calls


def test_a_lookup_that_asks_itself_is_python_s_to_refuse(record: Record) -> None:
    @cached
    def again(query: str) -> Any:
        return again(query)

    @cached
    def count(number: int) -> int:
        return 0 if number == 0 else 1 + count(number - 1)

    with recording(record, "one"):
        with pytest.raises(RecursionError):
            again("a")
        assert 9 == count(9)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def exact(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(JSON, JSON), min_size=1, max_size=6))
def test_equal_arguments_and_only_those_share_a_result(pairs: list[tuple[Any, Any]]) -> None:
    answers: dict[str, Any] = {}
    made: list[str] = []

    @cached
    def lookup(argument: Any) -> Any:
        made.append(exact(argument))
        return answers[exact(argument)]

    for argument, answer in pairs:
        answers.setdefault(exact(argument), answer)
    memory = Memory()
    for _ in range(2):
        with recording(Record(memory), "one"):
            for argument, _answer in pairs:
                found = lookup(argument)
                assert json.dumps(answers[exact(argument)]) == json.dumps(found)
    assert sorted(answers) == sorted(made)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 0.0, False, "0", None, "", [], {}]), max_size=12), st.integers(0, 12))
def test_a_run_that_is_killed_between_calls_goes_on(arguments: list[Any], stop: int) -> None:
    # The undisturbed run's results, and each call made once, wherever it was interrupted.
    made: list[Any] = []

    @once
    def act(argument: Any) -> int:
        made.append(argument)
        return len(made)

    memory = Memory()
    with recording(Record(memory), "one"):
        before = [act(argument) for argument in arguments[:stop]]
    with recording(Record(memory), "one"):
        after = [act(argument) for argument in arguments]
    assert before == after[:stop]
    assert list(range(1, len(arguments) + 1)) == after
    assert len(arguments) == len(made)


KILLED = """
import json, os, sys, threading, time
from vitrify.programs.effects import cached, once
from vitrify.programs.recorder import BEGUN, MISSING, Record, Unrepeatable, recording

class Log:
    def __init__(self, path):
        self.known = {}
        if os.path.exists(path):
            for line in open(path):
                key, value = json.loads(line)
                self.known[key] = BEGUN if value == "begun" else value
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def recall(self, key):
        return self.known.get(key, MISSING)
    def begin(self, key, name):
        self._write(key, "begun")
        self.known[key] = BEGUN
    def finish(self, key, value):
        self._write(key, value)
        self.known[key] = value
    def _write(self, key, value):
        os.write(self.file, (json.dumps([key, value]) + "\\n").encode())

path, out, hang = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT), sys.argv[3] == "hang"

@cached
def search(query):
    os.write(out, b"search\\n")
    return [query]

@once
def book(room):
    os.write(out, f"book {room}\\n".encode())
    if room == "b" and hang:
        time.sleep(60)
    return room

with recording(Record(Log(path)), "one"):
    print(search("a"), book("a"), flush=True)
    try:
        print(book("b"))
    except Unrepeatable as error:
        print(error)
"""


def test_a_process_that_is_killed_in_the_middle_of_a_call(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(log), str(out)]
    first = subprocess.Popen([*command, "hang"], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert "['a'] a\n" == first.stdout.readline()
        while "book b" not in out.read_text():
            assert first.poll() is None
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    done = subprocess.run([*command, "go"], timeout=30, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['a'] a\nbook(room='b') was begun before the run was interrupted")
    assert ["search", "book a", "book b"] == out.read_text().split("\n")[:-1]


def test_importing_them_is_cheap() -> None:
    heavy = ("dspy", "pydantic", "asyncio", "aiohttp", "numpy", "diskcache", "litellm")
    code = f"import sys, vitrify.programs.effects; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


# DSPy


def script(*steps: tuple[str, dict[str, Any]]) -> Any:
    from dspy.utils import DummyLM

    return DummyLM(
        [
            {"next_thought": "so", "next_tool_name": name, "next_tool_args": json.dumps(arguments)}
            for name, arguments in [*steps, ("finish", {})]
        ]
        + [{"reasoning": "so", "answer": "done"}]
    )


def test_dspy_sees_the_function() -> None:
    import dspy

    tool = dspy.Tool(search)
    assert ("search", "Look it up.") == (tool.name, tool.desc)
    assert {"query", "k"} <= set(tool.args)
    assert "string" == tool.args["query"]["type"]
    assert ["a 0"] == tool(query="a", k=1)
    assert "X" == asyncio.run(dspy.Tool(asearch).acall(query="x"))


def test_react_is_taken_up_again(memory: Memory) -> None:
    import dspy

    def run() -> Any:
        agent = dspy.ReAct("question -> answer", tools=[search, book], max_iters=5)
        lm = script(("search", {"query": "a"}), ("book", {"room": "x"}), ("book", {"room": "x"}))
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter()), recording(Record(memory), "one") as evaluation:
            prediction = agent(question="?")
        assert evaluation.refusal is None
        return prediction.trajectory

    before = run()
    assert [("a", 3), "x", "x"] == calls
    assert ["a 0", "a 1", "a 2"] == before["observation_0"]
    assert (2, 3) == (before["observation_1"]["number"], before["observation_2"]["number"])
    assert before == run()
    assert 3 == len(calls)


def test_what_react_swallows_sticks(memory: Memory) -> None:
    import dspy

    agent = dspy.ReAct("question -> answer", tools=[book], max_iters=3)
    with dspy.context(lm=script(("book", {"room": "x"})), adapter=dspy.ChatAdapter()):
        with recording(Record(memory), "one"):
            agent(question="?")
        memory.lines = dict.fromkeys(memory.lines)  # killed in between
        with dspy.context(lm=script(("book", {"room": "x"}))), recording(Record(memory), "one") as evaluation:
            prediction = agent(question="?")
    assert "Unrepeatable" in str(prediction.trajectory) or "was begun before" in str(prediction.trajectory)
    assert isinstance(evaluation.refusal, Unrepeatable)
    assert ["x"] == calls


def test_threads_of_dspy_are_seen(record: Record) -> None:
    import dspy

    class Desk(dspy.Module):
        def forward(self, query: str) -> Any:
            return dspy.Prediction(found=search(query))

    def run() -> list[Any]:
        with recording(record, "one") as evaluation, dspy.context(**{SETTING: evaluation}):
            asked = [(Desk(), dspy.Example(query=query).with_inputs("query")) for query in "abab"]
            results = dspy.Parallel(num_threads=2, disable_progress_bar=True)(asked)
        return [result.found for result in results]

    assert run() == run()
    assert [("a", 3), ("b", 3)] == sorted(calls)


def test_what_a_record_may_say() -> None:
    assert {MISSING, BEGUN} == set(Unknown)

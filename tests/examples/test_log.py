"""The log in files: stopped or paused at every step, and all of it killed while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from examples.log import consumer as consumer_module
from examples.log.consumer import Delivery, Member
from examples.log.files import Log, LogError, State, SucceededError, existing
from examples.log.producer import Producer
from examples.log.verify import findings
from libpharaoh import Client
from libpharaoh.errors import FencedError
from libpharaoh.testing import FakeClient
from tests.support.daemon import ROOT, WATCHDOG_S, Daemon, short_directory, stopped, wait_until

SOURCE = [f"line {number}" for number in range(7)]
BATCH = 2


class KilledError(BaseException):
    """Stands for the end of a process."""


def killed() -> None:
    raise KilledError


class Steps:
    """Calls `action` before or after one of the steps that others can see: requests, and links."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, client: FakeClient) -> None:
        self.client = client
        self.left = -1
        self.after = False
        self.action: Callable[[], None] = lambda: None
        monkeypatch.setattr(os, "link", self._step(os.link))
        for name in ("assign_offset", "join_group"):
            monkeypatch.setattr(client, name, self._step(getattr(client, name)))

    def at(self, number: int, after: bool, action: Callable[[], None]) -> None:
        """Steps count from 0."""
        self.left, self.after, self.action = number, after, action

    @property
    def reached(self) -> bool:
        return self.left < 0

    def _step(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            now = self.left == -1
            if now and not self.after:
                self.action()
            result = real(*arguments, **named)
            if now and self.after:
                self.action()
            return result

        return step


@pytest.fixture
def client() -> Client:
    return cast(Client, FakeClient())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, client: Client) -> Steps:
    return Steps(monkeypatch, cast(FakeClient, client))


@pytest.fixture
def logs(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """One new log after the other."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here
    return (Log.create(str(tmp_path / f"log {number}"), 2, client) for number in count())


@pytest.fixture
def log(logs: Iterator[Log]) -> Log:
    return next(logs)


def produce(log: Log, client: Client, source: list[str] = SOURCE, name: str = "a") -> None:
    """From where the log says."""
    producer = Producer(log, client, name)
    while producer.position < len(source):
        at = producer.position
        producer.send(at // BATCH % 2, source[at : at + BATCH])


def files(log: Log) -> list[str]:
    """Every name of the log but those of temporary files."""
    return sorted(str(path) for path in Path(log.path).rglob("*") if not path.name.startswith("."))


def payloads(log: Log, partition: int) -> list[str]:
    """A partition's, by offset; asserts that there is no gap and nothing twice."""
    found: list[str] = []
    for offset in log.partitions[partition].numbers():
        batch = log.partitions[partition].get(offset)
        assert batch is not None
        assert offset == len(found)
        found += batch.payloads
    return found


def check(log: Log, source: list[str] = SOURCE) -> None:
    """Each line of the source is there once, and in order."""
    assert list(findings(log)) == []
    expected: list[list[str]] = [[], []]
    for at in range(0, len(source), BATCH):
        expected[at // BATCH % 2] += source[at : at + BATCH]
    assert [payloads(log, partition) for partition in range(2)] == expected


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_producer_killed_at_each_step(steps: Steps, logs: Iterator[Log], client: Client, after: bool) -> None:
    """F35: the next process goes on exactly where the killed one was."""
    for number in count():
        log = next(logs)
        steps.at(number, after, killed)
        try:
            produce(log, client)
        except KilledError:
            produce(log, client)
        check(log)
        if not steps.reached:
            assert number > 12
            break


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_producer_paused_at_each_step(steps: Steps, logs: Iterator[Log], client: Client, after: bool) -> None:
    """F22: a successor takes over; the paused one goes on, is fenced, and changes nothing."""
    fenced = []
    for number in count():
        log = next(logs)
        seen: list[str] = []

        def take_over(log: Log = log, seen: list[str] = seen) -> None:
            produce(log, client)
            seen += files(log)

        steps.at(number, after, take_over)
        try:
            produce(log, client)
        except FencedError as error:
            fenced.append("by the journal" if isinstance(error, SucceededError) else "by Pharaoh")
        check(log)
        if not steps.reached:
            break
        assert files(log) == seen
    assert fenced.count("by the journal") >= 4
    assert fenced.count("by Pharaoh") >= (2 if not after else 1)


def test_consumers_finish_what_a_dead_producer_began(
    steps: Steps, log: Log, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its offset is assigned, and nobody of its name comes back: the partition goes on all the same."""
    monkeypatch.setattr(consumer_module, "PATIENCE_S", 0.0)
    steps.at(2, True, killed)
    with pytest.raises(KilledError):
        produce(log, client)
    produce(log, client, ["x", "y"], name="b")
    assert log.partitions[0].numbers() == [2]
    member = Member(log, client, "group", "m")
    assert [member.poll(), member.poll()] == [[], [Delivery(0, 0, SOURCE[:2]), Delivery(0, 2, ["x", "y"])]]
    member.commit()
    assert list(findings(log)) == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_member_paused_at_each_step(steps: Steps, logs: Iterator[Log], client: Client, after: bool) -> None:
    """F22: another member takes everything over; the paused one commits nothing any more."""
    fenced = 0
    for number in count():
        log = next(logs)
        produce(log, client)
        member = Member(log, client, "group", "m")
        seen: list[Delivery] = []
        states: list[str] = []

        def take_over(log: Log = log, seen: list[Delivery] = seen, states: list[str] = states) -> None:
            successor = Member(log, client, "group", "n", absence_s=0)
            while delivered := successor.poll():
                seen += delivered
                successor.commit()
            states += files(log)

        steps.at(number, after, take_over)
        seen += member.poll()
        try:
            member.commit()
        except FencedError:
            fenced += 1
            assert files(log) == states
        if not steps.reached:
            break
        assert list(findings(log)) == []
        lines = {line for delivery in seen for line in delivery.payloads}
        assert lines == set(SOURCE)
    assert fenced == 1


def test_process_of_the_same_name_fences_the_older_one(log: Log, client: Client) -> None:
    older = Member(log, client, "group", "m")
    older.poll()
    newer = Member(log, client, "group", "m")
    newer.poll()
    with pytest.raises(FencedError):
        older.commit()
    with pytest.raises(FencedError):
        older.poll()
    newer.commit()
    assert newer.generation == 2


def test_members_share_the_partitions(log: Log, client: Client) -> None:
    """A silent one loses its share."""
    first = Member(log, client, "group", "a")
    first.poll()
    second = Member(log, client, "group", "b")
    second.poll()
    produce(log, client)
    assert {delivery.partition for delivery in first.poll()} == {0}
    assert {delivery.partition for delivery in second.poll()} == {1}
    for sign in Path(log.path, "alive").glob("a@*"):
        os.utime(sign, (0, 0))
    assert {delivery.partition for delivery in second.poll()} == {0, 1}
    second.commit()
    with pytest.raises(FencedError):
        first.commit()
    assert first.poll() == []
    assert (first.generation, second.generation) == (4, 3)


def rewritten(path: str, **changes: object) -> None:
    """An entry with other contents, as one that nobody could have put there."""
    _, _, body = Path(path).read_text().partition(" ")
    body = json.dumps(json.loads(body) | changes)
    Path(path).unlink()  # the same file may lie elsewhere, too
    Path(path).write_text(f"{zlib.crc32(body.encode()):08x} {body}\n")


def swap(log: Log) -> None:
    one, two = (log.partitions[0].file(offset) for offset in (0, 2))
    os.rename(one, f"{one}0")
    os.rename(two, one)
    os.rename(f"{one}0", two)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda log: os.unlink(log.partitions[0].file(0)), "partition 0: a batch at 2, the one before it ends at 0"),
        (lambda log: os.unlink(log.partitions[0].file(0)), "a: batches without an offset: [2]"),
        (lambda log: os.link(log.partitions[0].file(2), log.partitions[0].file(4)), "at 4 does not belong there"),
        (swap, "partition 0: the batch at 2 comes after a later one of a"),
        (lambda log: os.unlink(log.journal("a").file(2)), "a: its journal has a gap"),
        (lambda log: os.unlink(log.journal("a").file(5)), "a: batch 5 is not in its journal"),
        (lambda log: rewritten(log.journal("a").file(5), position=9), "a: batch 5 does not follow the one before it"),
        (lambda log: rewritten(log.journal("a").file(5), session=9), "a: batch 5 is not of the session that had begun"),
        (lambda log: os.unlink(log.group("g").file(1)), "group g: a gap in its states"),
        (lambda log: rewritten(log.group("g").file(3), generation=1), "group g: the members of generation 1 changed"),
        (lambda log: rewritten(log.group("g").file(4), generation=1), "group g: generation 1 after 2"),
        (lambda log: rewritten(log.group("g").file(3), committed=[4, 4]), "generation 2 began with other offsets"),
        (lambda log: rewritten(log.group("g").file(4), committed=[0, 0]), "offsets went back in generation 2"),
        (lambda log: rewritten(log.group("g").file(4), committed=[4, 5]), "group g: offsets beyond the end"),
    ],
)
def test_verify_notices(log: Log, client: Client, damage: Callable[[Log], None], finding: str) -> None:
    produce(log, client)
    for name in ("m", "n"):
        member = Member(log, client, "g", name)
        member.poll()
        member.commit()
    check(log)
    damage(log)
    assert any(finding in found for found in findings(log)), list(findings(log))


def test_refusals(log: Log, client: Client, tmp_path: Path) -> None:
    produce(log, client)
    with pytest.raises(LogError, match="is a log already"):
        Log.create(log.path, 2, client)
    with pytest.raises(LogError, match="is no log"):
        Log(str(tmp_path))
    with pytest.raises(LogError, match="cannot be the name of a file"):
        Producer(log, client, "../a")
    with pytest.raises(ValueError, match="at least one payload"):
        Producer(log, client, "a").send(0, [])
    with open(log.partitions[0].file(0), "a") as file:
        file.write("x")
    with pytest.raises(LogError, match="is damaged"):
        log.partitions[0].get(0)


def test_counters_that_began_anew_overwrite_nothing(log: Log, client: Client) -> None:
    produce(log, client)
    before = payloads(log, 0)
    with pytest.raises(LogError, match="is taken"):
        Producer(log, cast(Client, FakeClient()), "b").send(0, ["x"])
    assert payloads(log, 0) == before


PRODUCERS = ("a", "b", "c", "d")
CONSUMERS = ("x", "y", "z")
LINES_BETWEEN_EVENTS = 100
LINES_AHEAD = 1000
FENCED = 3


class Program:
    """`python -m examples.log …` as a process whose outputs are files."""

    def __init__(self, daemon: Daemon, output: Path, *arguments: str) -> None:
        self.output = output
        command = [sys.executable, "-m", "examples.log", "--socket", daemon.socket, *arguments]
        with open(output, "ab") as out, open(f"{output}.errors", "ab") as errors:
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)

    def lines(self) -> list[str]:
        """What it has printed, without a last line that it was killed in."""
        return self.output.read_text().split("\n")[:-1]

    def errors(self) -> str:
        return Path(f"{self.output}.errors").read_text()


class Theatre:
    """Producers, consumers and the daemon, and what befalls them."""

    def __init__(self, daemon: Daemon, directory: Path, rng: random.Random) -> None:
        self.daemon, self.directory, self.rng = daemon, directory, rng
        self.path = str(directory / "records")
        self.programs: list[Program] = []
        self.paused: list[Program] = []
        self.sources = dict.fromkeys(PRODUCERS, 0)
        self.run("init", self.path)
        self.log = Log(self.path)
        self.producers: dict[str, Program] = {}
        self.consumers: dict[str, Program] = {}

    def begin_all(self) -> None:
        for name in PRODUCERS:
            self.begin_producer(name)
        for name in CONSUMERS:
            self.begin_consumer(name)

    def run(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "examples.log", "--socket", self.daemon.socket, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def begin(self, name: str, *arguments: str) -> Program:
        self.programs.append(Program(self.daemon, self.directory / f"{name}.{len(self.programs)}", *arguments))
        return self.programs[-1]

    def begin_producer(self, name: str) -> None:
        """With enough lines ahead that it does not end too soon."""
        source = self.directory / f"{name}.source"
        begun, self.sources[name] = self.sources[name], self.in_log(name) + LINES_AHEAD
        with open(source, "a") as file:
            file.writelines(f"{name} {number}\n" for number in range(begun, self.sources[name]))
        self.producers[name] = self.begin(name, "produce", self.path, name, str(source), "--batch", "10")

    def begin_consumer(self, name: str) -> None:
        self.consumers[name] = self.begin(name, "consume", self.path, "group", name, "--absence", "0.5")

    def in_log(self, name: str) -> int:
        """How many lines of a producer are in its journal."""
        journal = self.log.journal(name)
        newest = journal.get(journal.last())
        return newest.position if newest else 0

    def keep_going(self) -> None:
        """Waits until more is in the log, and producers that are done get more to do."""
        goal = sum(map(self.in_log, PRODUCERS)) + LINES_BETWEEN_EVENTS

        def gone_on() -> bool:
            for name, program in self.producers.items():
                status = program.process.poll()
                assert status in (None, 0), program.errors()
                if status == 0:
                    self.begin_producer(name)
            for program in self.consumers.values():
                assert program.process.poll() is None, program.errors()
            return sum(map(self.in_log, PRODUCERS)) >= goal

        wait_until(gone_on, "progress")

    # --- events

    def kill_producer(self) -> None:
        self.replace_producer(self.rng.choice(PRODUCERS))

    def replace_producer(self, name: str) -> None:
        self.producers[name].process.kill()
        self.producers[name].process.wait()
        self.begin_producer(name)

    def kill_consumer(self) -> None:
        name = self.rng.choice(CONSUMERS)
        self.consumers[name].process.kill()
        self.consumers[name].process.wait()
        self.begin_consumer(name)

    def kill_worker(self) -> None:
        os.kill(self.rng.choice(list(self.daemon.worker_pids().values())), signal.SIGKILL)
        self.daemon.wait_live()

    def kill_daemon(self) -> None:
        self.daemon.kill()
        self.daemon.start()

    def succeed_paused_producer(self) -> None:
        name = self.rng.choice(PRODUCERS)
        while True:
            self.replace_producer(name)
            wait_until(self.producers[name].lines, "a producer at work")
            pause(self.producers[name])
            if self.in_log(name) < self.sources[name]:  # else it was about to end, and would not be fenced
                break
        self.paused.append(self.producers[name])
        self.begin_producer(name)
        wait_until(self.producers[name].lines, "its successor at work")

    def succeed_paused_consumer(self) -> None:
        name = self.rng.choice(CONSUMERS)
        wait_until(self.consumers[name].errors, "a member of a generation")
        pause(self.consumers[name])
        self.paused.append(self.consumers[name])
        self.begin_consumer(name)
        wait_until(self.consumers[name].errors, "its successor in a generation")

    def pause_consumer(self) -> None:
        """For so long that the others exclude it, and begin a generation without it."""
        name = self.rng.choice(CONSUMERS)
        pause(self.consumers[name])
        wait_until(lambda: name not in self.state().members, "an absent member excluded")
        self.keep_going()
        self.consumers[name].process.send_signal(signal.SIGCONT)

    def state(self) -> State:
        states = self.log.group("group")
        while True:
            with contextlib.suppress(LogError):  # a newer one took its place between the two looks
                return existing(states, states.last())

    # --- the end

    def end(self) -> None:
        """Those that were succeeded end, fenced; the producers when they are done, the consumers when they have all."""
        for program in self.paused:
            program.process.send_signal(signal.SIGCONT)
            assert program.process.wait(WATCHDOG_S) == FENCED, program.errors()
        for program in self.producers.values():
            assert program.process.wait(WATCHDOG_S) == 0, program.errors()
        ends = [len(payloads(self.log, partition)) for partition in range(len(self.log.partitions))]
        wait_until(lambda: self.state().committed == ends, f"consumers at {ends}")
        self.kill_all()

    def kill_all(self) -> None:
        for program in self.programs:
            program.process.kill()
            program.process.wait()


def pause(program: Program) -> None:
    program.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: stopped(program.process.pid), "a process that stands still")


def check_theatre(theatre: Theatre) -> None:
    """What the log's own `verify` says, and what must hold without it."""
    assert theatre.run("verify", theatre.path).startswith("sound: ")
    partitions = [payloads(theatre.log, partition) for partition in range(len(theatre.log.partitions))]
    lines = Counter(line for partition in partitions for line in partition)
    assert lines == Counter(f"{name} {number}" for name, total in theatre.sources.items() for number in range(total))
    for partition in partitions:
        for name in PRODUCERS:
            numbers = [int(line.split()[1]) for line in partition if line.startswith(f"{name} ")]
            assert all(low < high for low, high in pairwise(numbers))
    placed = {f"{p} {offset} {line}" for p, found in enumerate(partitions) for offset, line in enumerate(found)}
    read = {line for program in theatre.programs for line in program.lines() if " " in line}
    assert read == placed
    states = theatre.log.group("group")
    committed = [existing(states, number).committed for number in states.numbers()]
    assert all(low <= high for older, newer in pairwise(committed) for low, high in zip(older, newer, strict=True))
    for name in PRODUCERS:  # what was succeeded put nothing into its journal any more
        journal = theatre.log.journal(name)
        sessions = [existing(journal, number).session for number in journal.numbers()]
        assert sessions == sorted(sessions)


def test_everything_killed(rng: random.Random, effort: float) -> None:
    """F1, F22, F35: 4 producers, 3 consumers, a daemon; each is killed, paused and succeeded while it works."""
    with short_directory() as directory, Daemon(directory, coordinators=2) as daemon:
        theatre = Theatre(daemon, directory, rng)
        events = [
            *(theatre.kill_producer, theatre.kill_consumer, theatre.kill_worker) * 2,
            *(theatre.kill_daemon, theatre.succeed_paused_producer, theatre.succeed_paused_consumer),
            theatre.pause_consumer,
        ] * max(1, round(effort))
        rng.shuffle(events)
        try:
            theatre.begin_all()
            for event in events:
                theatre.keep_going()
                event()
            theatre.end()
            check_theatre(theatre)
        finally:
            theatre.kill_all()

"""A client process that registers schemas at full tilt, through restarts of the daemon, until it is killed.

    python -m tests.support.registrar SOCKET LEDGER SEED SUBJECTS

Each answer is a line of the ledger, written by one system call: subject, number of the schema, id. SCHEMAS_UNUSABLE
ends it, unless the disk is known to be faulty: SEED begins with "faulty".
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import libpharaoh
from libpharaoh import Client
from libpharaoh.errors import PharaohError, SchemasUnusableError
from tests.support.daemon import ROOT

RETRY_S = 0.002


class Answer(NamedTuple):
    subject: str
    number: int
    id: int


def content_of(subject: str, number: int) -> str:
    """The schema that a number stands for; a tenth of them is large."""
    return f"schema {number} of {subject} " * (1000 if number % 10 == 0 else 1)


def connected(path: str) -> Client:
    while True:
        with contextlib.suppress(PharaohError):
            return libpharaoh.connect(path, name="registrar", timeout=2.0, rings=False)
        time.sleep(RETRY_S)


def main(path: str, ledger: str, seed: str, subjects: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rng = random.Random(seed)
    descriptor = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    client = connected(path)
    known = 1
    while True:
        # Mostly what others register too at this moment, now and then what was registered long ago.
        subject, number = f"subject {rng.randrange(subjects)}", rng.randrange(known)
        known += rng.random() < 0.1
        try:
            id = client.register_schema(subject, content_of(subject, number))
        except PharaohError as error:
            if not error.retryable and not (seed.startswith("faulty") and isinstance(error, SchemasUnusableError)):
                raise
            time.sleep(RETRY_S)
            continue
        os.write(descriptor, f"{subject}\t{number}\t{id}\n".encode())


def read(ledgers: Sequence[Path]) -> list[Answer]:
    found = []
    for ledger in ledgers:
        for line in ledger.read_text().splitlines() if ledger.exists() else ():
            subject, number, id = line.split("\t")
            found.append(Answer(subject, int(number), int(id)))
    return found


def check(answers: Sequence[Answer], client: Client, modulus: int, at_least: int) -> None:
    """One id per schema, one schema per id, versions dense, and the daemon still knows all that it said."""
    ids: dict[tuple[str, int], set[int]] = defaultdict(set)
    for subject, number, id in answers:
        ids[subject, number].add(id)
    assert len(ids) >= at_least, f"{len(ids)} schemas: too few to prove anything"
    assert all(len(given) == 1 for given in ids.values()), "a schema has two ids"
    every = [id for given in ids.values() for id in given]
    assert len(set(every)) == len(every), "two schemas have one id"
    for (subject, number), [id] in ids.items():
        found = client.get_schema(id)
        assert (found["id"], found["subject"]) == (id, subject)
        assert found["schema"] == content_of(subject, number)
        assert client.register_schema(subject, content_of(subject, number)) == id
        assert id % modulus == client.route(subject)["coordinator"]
    versions: dict[str | bytes, list[int]] = defaultdict(list)
    rows = client.list_schemas()
    for row in rows:
        versions[row.subject].append(row.version)
    assert all(seen == [*range(1, len(seen) + 1)] for seen in versions.values()), "versions are not dense"
    # What was written and not told, because somebody died, may be there too; nothing that was told may be missing.
    assert {row.id for row in rows} >= set(every)
    assert len({row.id for row in rows}) == len(rows)


@contextlib.contextmanager
def registrars(socket: str, directory: Path, seed: str, count: int, subjects: int = 6) -> Iterator[list[Path]]:
    """So many processes; their ledgers. Killed at the end; none may have ended by itself."""
    ledgers = [directory / f"registered-{seed}-{number}" for number in range(count)]
    command = [sys.executable, "-m", "tests.support.registrar", socket]
    processes = [
        subprocess.Popen([*command, str(ledger), f"{seed} {number}", str(subjects)], cwd=ROOT, stdin=subprocess.DEVNULL)
        for number, ledger in enumerate(ledgers)
    ]
    try:
        yield ledgers
        assert all(process.poll() is None for process in processes), "a client ended: see its traceback"
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

"""The registry of schemas on real files, with a counter that stands in for the coordinators' own.

Invariants, whatever fails when: an id stands for one schema for good; the same schema of a subject has one id; versions
of a subject are dense from 1; a file that is lost, damaged or foreign is refused and never begun anew.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import stat
import zlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from libpharaoh._framing import encode_result
from libpharaoh.errors import (
    BadRequestError,
    CounterExhaustedError,
    CounterUnknownError,
    KeyTooLongError,
    OutOfRangeError,
    PharaohError,
    SchemaInvalidError,
    SchemasUnusableError,
    SchemaUnknownError,
    StorageFullError,
    UnavailableError,
    WrongCoordinatorError,
)
from pharaohd import schemas, settings
from pharaohd.schemas import ID_MAX, PAGE_ROWS, BrokenError, Schemas, Store

MODULUS = 4
T = TypeVar("T")


class Counters:
    """The coordinators' counters of schemas: durable, and lost numbers are lost."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}
        self.drawn: list[tuple[int, int]] = []
        self.down: set[int] = set()

    async def ask(self, coordinator: int, method: str, params: list[Any]) -> Any:
        await asyncio.sleep(0)
        if coordinator in self.down:
            raise UnavailableError(f"coordinator {coordinator}")
        if method == "@counter_read":
            assert params == ["schema", ""]
            if coordinator not in self.next:
                raise CounterUnknownError
            return {"next": self.next[coordinator], "sessions": 0}
        assert (method, params) == ("@next_schema", [])
        number = self.next.setdefault(coordinator, 1)
        self.next[coordinator] += 1
        self.drawn.append((coordinator, number))
        return number


class Host:
    """A state directory, the counters beside it, and one registry after another on them."""

    def __init__(self, directory: Path, owns: str = "0-3") -> None:
        self.directory = directory
        (directory / "state/obelisks").mkdir(parents=True)
        config = directory / "pharaohd.toml"
        config.write_text(f'[cluster]\ncoordinators = {MODULUS}\n[host]\nowns = "{owns}"\n')
        self.settings = settings.load(config, directory, {})
        self.counters = Counters()

    def file(self, coordinator: int) -> Path:
        return self.directory / f"state/obelisks/{coordinator:04d}.schemas"

    def run(self, use: Callable[[Schemas], Coroutine[Any, Any, T]], *, close: bool = True) -> T:
        """What `use` returns, given the registry of a new process. close=False: it is killed afterwards."""

        async def main() -> T:
            registry = Schemas(self.settings, self.counters.ask)
            try:
                return await use(registry)
            finally:
                await (registry.close() if close else kill(registry))

        return asyncio.run(main())

    def register(self, subject: str | bytes, schema: str | bytes, type: str | None = None) -> int:
        return self.run(lambda registry: registry.register(subject, schema, type))

    def get(self, id: int) -> dict[str, Any]:
        return self.run(lambda registry: registry.get(id))

    def list(self, subject: str | bytes | None = None) -> list[list[Any]]:
        return self.run(lambda registry: listed(registry, subject))


async def kill(registry: Schemas) -> None:
    """As SIGKILL leaves the files: nothing tidied up."""
    registry._files.shutdown()


async def listed(registry: Schemas, subject: str | bytes | None = None) -> list[list[Any]]:
    rows: list[list[Any]] = []
    after = None
    while True:
        page = await registry.list(subject, after)
        rows += page["schemas"]
        after = page["next"]
        if after is None:
            return rows
        assert after == rows[-1][:2]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def subject_of(coordinator: int) -> str:
    return next(f"s{n}" for n in range(1000) if zlib.crc32(f"s{n}".encode()) % MODULUS == coordinator)


# Registering and getting


def test_the_same_schema_has_one_id(host: Host) -> None:
    async def use(registry: Schemas) -> set[int]:
        ways = ['{"a": 1, "b": 2.0}', b'{"b":20e-1,"a":1}', ' {"b":2.00,"a":1}']
        return {await registry.register(subject, way, type)
                for subject in ("s", b"s") for way in ways for type in (None, "json")}  # fmt: skip

    [id] = host.run(use)
    assert host.register("s", '{"a":1,"b":2.0}') == id  # nor after a restart
    assert len(host.counters.drawn) == 1
    assert host.get(id) == {"id": id, "subject": "s", "version": 1, "schema": '{"a": 1, "b": 2.0}', "type": "json"}


def test_an_id_names_its_coordinator_and_versions_are_dense(host: Host) -> None:
    subjects: list[str | bytes] = [
        "",
        "a",
        b"b",
        "ü",
        b"\xff",
        "x" * 4096,
        subject_of(0),
        subject_of(1),
        subject_of(2),
        subject_of(3),
    ]

    async def use(registry: Schemas) -> None:
        seen = set()
        for version in range(1, 6):
            for subject in subjects:
                id = await registry.register(subject, f"schema {version}")
                raw = subject if isinstance(subject, bytes) else subject.encode()
                assert id % MODULUS == zlib.crc32(raw) % MODULUS
                assert MODULUS <= id <= ID_MAX
                assert (await registry.get(id))["version"] == version
                seen.add(id)
        assert len(seen) == 5 * len(subjects)

    host.run(use)


@pytest.mark.parametrize("schema", ["", "text", b"", b"bytes", b"\xff\x00", "a\0b", "😀", "x" * 57_344])
@pytest.mark.parametrize("subject", ["s", b"s", b"\xff", "x" * 4096])
def test_what_was_sent_comes_back(host: Host, subject: str | bytes, schema: str | bytes) -> None:
    id = host.register(subject, schema, "bytes")
    found = host.get(id)
    assert found == {"id": id, "subject": subject, "version": 1, "schema": schema, "type": "bytes"}
    assert isinstance(found["schema"], type(schema))
    assert isinstance(found["subject"], type(subject))
    assert len(encode_result(2**32 - 1, found)) < 65_536


def test_text_and_bytes_of_a_subject_are_one(host: Host) -> None:
    first, second = host.register("s", "one"), host.register(b"s", b"two")
    assert host.register(b"s", b"one") == first
    assert [host.get(id)["version"] for id in (first, second)] == [1, 2]
    assert host.list("s") == host.list(b"s") == [["s", 1, first, "bytes"], [b"s", 2, second, "bytes"]]


def test_registering_at_once_gives_one_id(host: Host) -> None:
    async def use(registry: Schemas) -> list[int]:
        wanted = [registry.register(f"s{n % 3}", f"schema {n % 6 // 3}") for n in range(120)]
        return await asyncio.gather(*wanted)

    ids = host.run(use)
    assert len(set(ids)) == 6
    assert all(ids[n] == ids[n % 6] for n in range(120))
    assert len(host.counters.drawn) == 6
    assert sorted(version for _, version, _, _ in host.list()) == [1, 1, 1, 2, 2, 2]


def test_a_known_schema_needs_no_coordinator(host: Host) -> None:
    id = host.register("s", "known")
    host.counters.down = {0, 1, 2, 3}
    assert host.register("s", "known") == id
    assert host.get(id)["schema"] == "known"
    with pytest.raises(UnavailableError):
        host.register("s", "new")


def test_files_are_for_the_daemon_alone(host: Host) -> None:
    id = host.register("s", "x")
    assert stat.S_IMODE(host.file(id % MODULUS).stat().st_mode) == 0o600
    assert [path.name for path in host.file(0).parent.iterdir()] == [host.file(id % MODULUS).name]


# Refused


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ((5, "x"), BadRequestError),
        (("s", None), BadRequestError),
        (("s", ["x"]), BadRequestError),
        (("\udcff", "x"), BadRequestError),
        (("s", "\udcff"), BadRequestError),
        (("s", "x", 5), BadRequestError),
        (("s", "x", b"json"), SchemaInvalidError),
        (("x" * 4097, "x"), KeyTooLongError),
        (("ü" * 2049, "x"), KeyTooLongError),
        (("s", "x" * 57_345), SchemaInvalidError),
        (("s", "x", "xml"), SchemaInvalidError),
        (("s", "x", "json"), SchemaInvalidError),
    ],
)
def test_bad_registrations(host: Host, params: tuple[Any, ...], error: type[PharaohError]) -> None:
    with pytest.raises(error):
        host.run(lambda registry: registry.register(*params))
    assert host.counters.drawn == []
    assert host.list() == []


@pytest.mark.parametrize(
    ("id", "error"),
    [(0, OutOfRangeError), (-1, OutOfRangeError), (2**31, OutOfRangeError), (None, BadRequestError),
     ("1", BadRequestError), (True, BadRequestError), (1, SchemaUnknownError), (ID_MAX, SchemaUnknownError)],
)  # fmt: skip
def test_bad_ids(host: Host, id: Any, error: type[PharaohError]) -> None:
    with pytest.raises(error):
        host.get(id)


@pytest.mark.parametrize("after", [5, [], ["s"], ["s", "1"], ["s", -1], ["s", 2**63], ["s", 1, 2], [None, 1], {}])
def test_bad_places_in_a_list(host: Host, after: Any) -> None:
    with pytest.raises(BadRequestError):
        host.run(lambda registry: registry.list(None, after))


def test_another_host_s_coordinator(tmp_path: Path) -> None:
    host = Host(tmp_path, owns="1-2")
    for work in (lambda: host.register(subject_of(0), "x"), lambda: host.get(7), lambda: host.list(subject_of(3))):
        with pytest.raises(WrongCoordinatorError):
            work()
    host.register(subject_of(1), "x")
    assert len(host.list()) == 1


def test_the_ids_end_at_31_bits(host: Host) -> None:
    last = (ID_MAX - 1) // MODULUS
    host.counters.next[1] = last
    host.counters.next[3] = (ID_MAX - 3) // MODULUS + 1
    host.run(make(host, 1, 3))
    assert host.register(subject_of(1), "x") == last * MODULUS + 1
    for coordinator in (1, 3):
        with pytest.raises(CounterExhaustedError):
            host.register(subject_of(coordinator), "y")


def make(host: Host, *coordinators: int) -> Callable[[Schemas], Coroutine[Any, Any, None]]:
    """Makes the files of coordinators that have counted."""

    async def use(registry: Schemas) -> None:
        for coordinator in coordinators:
            await registry._registries[coordinator]._made()

    return use


# Lists


def test_a_list_is_in_order_over_all_coordinators(host: Host) -> None:
    async def use(registry: Schemas) -> None:
        for n in range(PAGE_ROWS + 50):
            await registry.register(f"subject {n % 40}", f"schema {n}")

    host.run(use)
    rows = host.list()
    assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)
    assert len({row[2] for row in rows}) == len(rows) == PAGE_ROWS + 50
    assert len({row[2] % MODULUS for row in rows}) == MODULUS
    assert host.list("subject 7") == [row for row in rows if row[0] == "subject 7"]
    assert host.list("nobody's") == []


long_subjects = st.builds(lambda byte, length: bytes([byte]) * length, st.integers(0, 255), st.integers(4090, 4096))


@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(st.binary(max_size=3) | long_subjects, st.integers(0, 3)),
        max_size=60, unique=True,
    )
)  # fmt: skip
def test_every_row_is_on_one_page_and_every_page_fits(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[bytes, int]]
) -> None:
    host = Host(tmp_path_factory.mktemp("host"))

    async def use(registry: Schemas) -> list[list[Any]]:
        for subject, number in wanted:
            await registry.register(subject, f"schema {number}")
        page: dict[str, Any] = {"next": None}
        rows: list[list[Any]] = []
        while page["next"] is not None or not rows:
            page = await registry.list(None, page["next"])
            assert len(encode_result(2**32 - 1, page)) < 65_536
            rows += page["schemas"]
            if page["next"] is None:
                break
        return rows

    rows = host.run(use)
    assert sorted(row[0] for row in rows) == sorted(subject for subject, _ in wanted)
    assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)


# Crashes


def test_a_crash_between_number_and_content_is_a_gap(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: the number is spent, and never stands for two schemas."""
    first = host.register("s", "one")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "insert", die)
        with pytest.raises(KeyboardInterrupt):
            host.run(lambda registry: registry.register("s", "two"), close=False)
    assert len(host.counters.drawn) == 2
    third = host.register("s", "three")
    again = host.register("s", "two")
    assert [id // MODULUS for id in (first, third, again)] == [1, 3, 4]
    assert [row[1] for row in host.list("s")] == [1, 2, 3]


def test_what_was_told_outlives_a_kill(host: Host) -> None:
    async def use(registry: Schemas) -> list[int]:
        return [await registry.register("s", f"schema {n}") for n in range(20)]

    ids = host.run(use, close=False)
    assert [row[2] for row in host.list("s")] == ids


@pytest.mark.parametrize("step", ["os.rename", "manifest.sync_directory", "os.fsync"])
def test_no_number_is_drawn_before_the_file_is_durable(host: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """F3: a crash while the file is made leaves a coordinator that has not counted, and it begins again."""
    module, name = step.split(".")

    def die(*_: object) -> None:
        assert host.counters.drawn == []
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(getattr(schemas, module), name, die)
        with pytest.raises(KeyboardInterrupt):
            host.run(lambda registry: registry.register("s", "one"), close=False)
    assert host.counters.drawn == []
    assert host.get(host.register("s", "one"))["version"] == 1


def test_a_full_disk_eats_no_numbers(host: Host) -> None:
    async def use(registry: Schemas) -> None:
        await registry.register("s", "small")
        number = zlib.crc32(b"s") % MODULUS
        store = registry._registries[number]._store
        assert store is not None
        run = asyncio.get_running_loop().run_in_executor
        [pages] = await run(registry._files, lambda: store._db.execute("PRAGMA page_count").fetchone())
        await run(registry._files, lambda: store._db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        for n in range(5):
            with pytest.raises(StorageFullError):
                await registry.register("s", f"{n}" * 50_000)
        await run(registry._files, lambda: store._db.execute("PRAGMA max_page_count = 1000000").fetchone())
        assert await registry.register("s", "large" * 10_000) // MODULUS == 2

    host.run(use)
    assert len(host.counters.drawn) == 2
    assert [row[1] for row in host.list("s")] == [1, 2]


def test_a_failed_write_is_final(host: Host) -> None:
    """F4: nobody knows what it left behind; this process does not touch the file again, not even to close it."""
    id = host.register("s", "one")

    class Failing:
        """A connection whose commits fail once."""

        def __init__(self, db: sqlite3.Connection) -> None:
            self._db = db
            self.in_transaction = False

        def execute(self, sql: str, *params: Any) -> Any:
            if sql == "COMMIT":
                self._db.execute("ROLLBACK")
                raise sqlite3.OperationalError("disk I/O error")
            return self._db.execute(sql, *params)

        def close(self) -> None:
            self._db.close()

    async def use(registry: Schemas) -> None:
        await registry.get(id)
        one = registry._registries[id % MODULUS]
        assert one._store is not None
        one._store._db = Failing(one._store._db)  # type: ignore[assignment]
        for _ in range(2):
            with pytest.raises(BrokenError):
                await registry.register("s", "two")
        with pytest.raises(BrokenError):
            await registry.get(id)
        with pytest.raises(BrokenError):
            await registry.close()

    host.run(use, close=False)
    assert len(host.counters.drawn) == 2
    assert host.get(id)["schema"] == "one"
    assert [row[1] for row in host.list("s")] == [1]


# Lost, damaged and foreign files


def refuses(host: Host, coordinator: int, id: int, said: str) -> None:
    """Every method says why, draws nothing, and leaves the file as it is."""
    drawn = len(host.counters.drawn)
    before = host.file(coordinator).read_bytes() if host.file(coordinator).exists() else None
    for work in (
        lambda: host.register(subject_of(coordinator), "new"),
        lambda: host.get(id),
        host.list,
        lambda: host.list(subject_of(coordinator)),
    ):
        with pytest.raises(SchemasUnusableError, match=said):
            work()
    assert len(host.counters.drawn) == drawn
    assert before == (host.file(coordinator).read_bytes() if host.file(coordinator).exists() else None)


@pytest.fixture
def filled(host: Host) -> tuple[Host, int]:
    """A host whose coordinator 2 has some schemas; and the id of one of them."""
    ids = [host.register(subject_of(2), f"schema {n} " * 200) for n in range(30)]
    return host, ids[7]


def test_a_missing_file_is_refused(filled: tuple[Host, int]) -> None:
    """F3: an empty registry would give old schemas new ids, and its counter's next numbers would look like all."""
    host, id = filled
    kept = host.file(2).rename(host.directory / "kept")
    refuses(host, 2, id, "is missing")
    kept.rename(host.file(2))
    assert host.get(id)["version"] == 8


def test_a_missing_file_is_refused_while_the_coordinator_is_down(filled: tuple[Host, int]) -> None:
    host, id = filled
    host.file(2).unlink()
    host.counters.down = {2}
    with pytest.raises(UnavailableError):
        host.get(id)


def test_a_restored_file_serves_without_a_restart(filled: tuple[Host, int]) -> None:
    host, id = filled
    kept = host.file(2).rename(host.directory / "kept")

    async def use(registry: Schemas) -> dict[str, Any]:
        with pytest.raises(SchemasUnusableError):
            await registry.get(id)
        kept.rename(host.file(2))
        return await registry.get(id)

    assert host.run(use)["id"] == id


def test_a_write_ahead_log_without_its_file_is_refused(host: Host) -> None:
    Path(f"{host.file(2)}-wal").write_bytes(b"left over")
    with pytest.raises(SchemasUnusableError, match="-wal is there"):
        host.register(subject_of(2), "x")
    assert host.counters.drawn == []


def sql(file: Path, *statements: str) -> None:
    with sqlite3.connect(file, isolation_level=None) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("PRAGMA application_id = 7", "is no file of schemas"),
        ("PRAGMA user_version = 2", "has format 2"),
        ("UPDATE identity SET coordinator = 1", "belongs to"),
        ("UPDATE identity SET modulus = 8", "belongs to"),
        ("UPDATE identity SET cluster = 'other'", "belongs to"),
        ("DELETE FROM identity", "belongs to"),
        ("DROP TABLE identity", "no such table"),
    ],
)
def test_a_foreign_file_is_refused(filled: tuple[Host, int], statement: str, said: str) -> None:
    """F27."""
    host, id = filled
    sql(host.file(2), "PRAGMA journal_mode = DELETE", statement)
    refuses(host, 2, id, said)


def test_another_coordinator_s_file_is_refused(filled: tuple[Host, int]) -> None:
    host, id = filled
    host.register(subject_of(1), "x")
    shutil.copy(host.file(1), host.file(2))
    refuses(host, 2, id, "belongs to")


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000, b"\0" * 8192], ids=["blank", "garbage", "zeros"])
def test_a_file_that_is_none_is_refused(filled: tuple[Host, int], content: bytes) -> None:
    host, id = filled
    host.file(2).write_bytes(content)
    refuses(host, 2, id, "is no file of schemas|not a database")


def test_a_truncated_file_is_refused(filled: tuple[Host, int]) -> None:
    """F8."""
    host, id = filled
    data = host.file(2).read_bytes()
    host.file(2).write_bytes(data[: len(data) // 8192 * 4096])
    refuses(host, 2, id, "damaged|malformed")


def test_damage_is_refused_or_harmless(filled: tuple[Host, int], rng: random.Random, effort: float) -> None:
    """F2: whatever bytes a disk damages, a schema is what was registered or an error."""
    host, _ = filled
    data = host.file(2).read_bytes()
    good = {row[2]: host.get(row[2]) for row in host.list()}

    async def use(registry: Schemas) -> int:
        refused = 0
        for id, schema in good.items():
            try:
                assert await registry.get(id) == schema
            except (SchemasUnusableError, SchemaUnknownError):
                refused += 1
        return refused

    refused = 0
    for _ in range(max(1, round(40 * effort))):
        damaged = bytearray(data)
        at = rng.randrange(len(data))
        damaged[at : at + rng.choice([1, 4, 600])] = rng.randbytes(rng.choice([1, 4, 600]))
        host.file(2).write_bytes(damaged[: len(data)])
        refused += host.run(use)
    assert refused > 0, "no damage hit anything"


def test_a_damaged_row_costs_itself_alone(filled: tuple[Host, int]) -> None:
    host, id = filled
    sql(host.file(2), f"UPDATE schemas SET content = 'another' WHERE id = {id}")
    with pytest.raises(SchemasUnusableError, match=f"schema {id} is damaged"):
        host.get(id)
    assert host.get(id + MODULUS)["version"] == 9
    sql(host.file(2), f"UPDATE schemas SET version = 99 WHERE id = {id + MODULUS}")
    with pytest.raises(SchemasUnusableError):
        host.get(id + MODULUS)


def test_a_counter_that_was_set_back_overwrites_nothing(filled: tuple[Host, int]) -> None:
    """F27: the journal of counters came from an older backup than the schemas."""
    host, id = filled
    rows = host.list()
    host.counters.next[2] = 5
    with pytest.raises(SchemasUnusableError, match="the counter of coordinator 2 was set back"):
        host.register(subject_of(2), "new")
    assert host.list() == rows
    assert host.get(id)["version"] == 8

    async def use(registry: Schemas) -> int:
        with pytest.raises(SchemasUnusableError):
            await registry.register(subject_of(2), "new")
        host.counters.next[2] = 31  # as the operator is told; no restart
        return await registry.register(subject_of(2), "new")

    assert host.run(use) == 31 * MODULUS + 2


def test_a_file_taken_away_underneath(filled: tuple[Host, int]) -> None:
    """F8: what is written into a file without a name is lost."""
    host, id = filled

    async def use(registry: Schemas) -> None:
        await registry.get(id)
        host.file(2).unlink()
        for _ in range(2):
            with pytest.raises(SchemasUnusableError, match="taken away"):
                await registry.register(subject_of(2), "new")

    host.run(use)


def test_a_backup_in_progress_is_waited_for(filled: tuple[Host, int], monkeypatch: pytest.MonkeyPatch) -> None:
    host, id = filled
    monkeypatch.setattr(schemas, "LOCK_PATIENCE_S", 0.05)
    drawn = len(host.counters.drawn)

    async def use(registry: Schemas) -> int:
        await registry.get(id)
        other = sqlite3.connect(host.file(2), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            with pytest.raises(UnavailableError, match="locked"):
                await registry.register(subject_of(2), "new")
        assert (await registry.get(id))["id"] == id
        other.execute("ROLLBACK")
        other.close()
        return await registry.register(subject_of(2), "new")

    assert host.run(use) == 31 * MODULUS + 2
    assert len(host.counters.drawn) == drawn + 1

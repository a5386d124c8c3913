"""The main job on real input: crash-safe ids for a forked web application, while its daemon is killed.

Starts a real pharaohd and a real gunicorn (--preload), sends real HTTP load, kills, restarts and forks, and then
counts duplicates in the database. Exit status 0 only when every check holds.
"""

from __future__ import annotations

import http.client
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import libpharaoh
from demo.load import REQUEST_DEADLINE_S, Load, post
from demo.service import Daemon, DemoError, Gunicorn, wait_for

GUNICORN_WORKERS = 4
CUSTOMERS = 8
PAUSE_S = 1.5
"""Of plain load between two events."""
ORDERS_AFTER_EVENT = 50
"""So many must be acknowledged after each event before the next."""
ORDERS_MIN = 1000
IMPORT_ORDERS = 200
SAMPLES = 5
COUNT_FALLS = """
SELECT count(*) FROM (SELECT id <= lag(id) OVER (PARTITION BY process ORDER BY row) AS fell FROM orders) WHERE fell
"""
COUNT_DUPLICATES = "SELECT count(*) FROM (SELECT id FROM orders GROUP BY id HAVING count(*) > 1)"
CREATE_ORDERS = """
CREATE TABLE orders (
    row INTEGER PRIMARY KEY, id INTEGER NOT NULL, customer TEXT NOT NULL, item TEXT NOT NULL,
    quantity INTEGER NOT NULL, process INTEGER NOT NULL
)
"""


def say(text: str) -> None:
    """A progress line."""
    print(text, flush=True)


def red(text: str) -> str:
    """`text` in red, where a terminal shows it."""
    return f"\033[31;1m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


class Demo:
    """The events, in the order of `run`. Every event must be seen to have happened, and orders must flow after it."""

    def __init__(self, daemon: Daemon, gunicorn: Gunicorn, load: Load) -> None:
        self.daemon = daemon
        self.gunicorn = gunicorn
        self.load = load
        self.workers_killed = 0
        self.daemons_killed = 0
        self.daemons_restarted = 0
        self.forks = 0
        self._started_s = time.monotonic()

    def run(self) -> None:
        """All events, with load before, during and after each."""
        events: list[Callable[[], str]] = [
            self.kill_worker, self.kill_worker, self.fork_in_request, self.restart_daemon, self.kill_worker,
            self.recycle_gunicorn, self.kill_worker, self.fork_in_request, self.kill_daemon, self.fork_in_request,
            self.add_gunicorn_worker, self.kill_worker,
        ]  # fmt: skip
        for event in events:
            time.sleep(PAUSE_S)
            self._expect_orders(event())
        time.sleep(PAUSE_S)

    def kill_worker(self) -> str:
        coordinator, rings = self.daemon.busiest()
        old, new, duration_ms = self.daemon.kill_worker(coordinator)
        self.workers_killed += 1
        where = f"coordinator {coordinator}, which served {rings} rings"
        return f"kill -9 worker of {where}: pid {old} → {new} in {duration_ms:.0f} ms"

    def restart_daemon(self) -> str:
        old = self.daemon.pid
        before = set(self.daemon.workers().values())
        status = self.daemon.stop()
        if status != 0:
            raise DemoError(f"pharaohd ended with exit status {status} after SIGTERM")
        duration_ms = self.daemon.start()
        self._expect_new_daemon(old, before)
        self.daemons_restarted += 1
        return f"pharaohd stopped and started: pid {old} → {self.daemon.pid}, live in {duration_ms:.0f} ms"

    def kill_daemon(self) -> str:
        before = set(self.daemon.workers().values())
        old = self.daemon.kill_supervisor()
        duration_ms = self.daemon.start()
        self._expect_new_daemon(old, before)
        self.daemons_killed += 1
        return f"kill -9 pharaohd and started: pid {old} → {self.daemon.pid}, live in {duration_ms:.0f} ms"

    def _expect_new_daemon(self, old: int, workers: set[int]) -> None:
        now = set(self.daemon.workers().values())
        if self.daemon.pid == old or now & workers:
            raise DemoError(f"pharaohd is not a new one: pid {old} → {self.daemon.pid}, workers {workers} → {now}")

    def fork_in_request(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.gunicorn.port, timeout=REQUEST_DEADLINE_S)
        answer = post(connection, "/imports", {"orders": IMPORT_ORDERS})
        connection.close()
        if answer["process"] in self.gunicorn.workers():
            raise DemoError(f"the import ran in gunicorn's worker {answer['process']}, not in a child of it")
        self.forks += 1
        return f"a request handler forked pid {answer['process']}, which stored {answer['orders']} orders itself"

    def recycle_gunicorn(self) -> str:
        duration_ms = self.gunicorn.recycle()
        self.forks += GUNICORN_WORKERS
        return f"gunicorn HUP: {GUNICORN_WORKERS} workers forked anew in {duration_ms:.0f} ms"

    def add_gunicorn_worker(self) -> str:
        self.gunicorn.add_worker()
        self.forks += 1
        return "gunicorn TTIN: one worker more was forked"

    def _expect_orders(self, text: str) -> None:
        before = self.load.count
        say(f"{time.monotonic() - self._started_s:6.1f} s  {before:7,} orders  {text}")
        wait_for("orders flow after: " + text, lambda: self.load.count >= before + ORDERS_AFTER_EVENT)


def check(database: sqlite3.Connection, load: Load) -> list[str]:
    """What is wrong; empty when every promise was kept."""
    wrong = []
    duplicates = count_duplicates(database)
    stored = {row[0] for row in database.execute("SELECT id FROM orders")}
    acknowledged = load.acknowledged
    lost = set(acknowledged) - stored
    if duplicates:
        wrong.append(f"{duplicates} ids stand on more than one order")
    if len(set(acknowledged)) != len(acknowledged):
        wrong.append("two HTTP answers carried the same id")
    falls = int(database.execute(COUNT_FALLS).fetchone()[0])
    if falls:
        wrong.append(f"{falls} times a process stamped an order with a smaller id than the one before")
    if lost:
        wrong.append(f"{len(lost)} acknowledged orders are not in the database, among them {sorted(lost)[:3]}")
    if load.failure_count:
        wrong.append(f"{load.failure_count} HTTP requests failed:")
        wrong.extend(f"    {failure}" for failure in load.failures)
    if len(stored) < ORDERS_MIN:
        wrong.append(f"only {len(stored)} orders were stored; fewer than {ORDERS_MIN} show nothing")
    return wrong


def count_duplicates(database: sqlite3.Connection) -> int:
    """Ids that stand on more than one order, after showing on a planted one that this count can see them."""
    database.execute("BEGIN")
    planted = "INSERT INTO orders (id, customer, item, quantity, process) SELECT id, 'planted', '', 0, 0 FROM orders"
    database.execute(planted + " ORDER BY row LIMIT 1")
    seen = int(database.execute(COUNT_DUPLICATES).fetchone()[0])
    database.execute("ROLLBACK")
    duplicates = int(database.execute(COUNT_DUPLICATES).fetchone()[0])
    if seen == 0:
        raise DemoError("a planted duplicate was not counted: this check sees nothing")
    return duplicates


def report(database: sqlite3.Connection, demo: Demo, load: Load) -> None:
    """The closing figures."""
    orders, processes = database.execute("SELECT count(*), count(DISTINCT process) FROM orders").fetchone()
    say("\n  id                   base32         time                      coordinator  sequence  stamped by")
    step = max(1, (orders - 1) // (SAMPLES - 1))
    sample = "SELECT id, process FROM orders WHERE (row - 1) % ? = 0 ORDER BY row LIMIT ?"
    for order_id, process in database.execute(sample, (step, SAMPLES)):
        scarab = libpharaoh.parse(order_id)
        moment = scarab.datetime.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        base32 = scarab.to_base32()
        say(f"  {order_id:<20} {base32:<14} {moment:<25} {scarab.coordinator:>11} {scarab.sequence:>9}  pid {process}")
    say("")
    say(f"  orders stored       {orders:,} by {processes} processes")
    say(f"  rate                {load.count / load.elapsed_s:,.0f} orders/s over {load.elapsed_s:.0f} s of HTTP load")
    say(f"  HTTP failures       {load.failure_count}")
    say(f"  workers killed -9   {demo.workers_killed}")
    say(f"  daemons killed -9   {demo.daemons_killed}")
    say(f"  daemons restarted   {demo.daemons_restarted}")
    say(f"  application forks   {GUNICORN_WORKERS} from preload, then {demo.forks} more")
    say(f"  duplicates: {count_duplicates(database)}")


def create_database(path: Path) -> sqlite3.Connection:
    """The empty order table, in WAL mode."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(CREATE_ORDERS)
    return database


def play(directory: Path) -> list[str]:
    """The whole demo in `directory`; returns what is wrong."""
    with open(directory / "pharaohd.log", "wb") as daemon_log, open(directory / "gunicorn.log", "wb") as gunicorn_log:
        database = create_database(directory / "orders.sqlite")
        daemon = Daemon(directory / "pharaoh", daemon_log)
        gunicorn: Gunicorn | None = None
        load: Load | None = None
        try:
            say(f"pharaohd is live after {daemon.start():.0f} ms: pid {daemon.pid}, workers {daemon.workers()}")
            gunicorn = Gunicorn(daemon.socket_path, directory / "orders.sqlite", GUNICORN_WORKERS, gunicorn_log)
            say(f"gunicorn --preload serves on port {gunicorn.port}: workers {sorted(gunicorn.workers())}\n")
            load = Load(gunicorn.port, CUSTOMERS)
            load.start()
            demo = Demo(daemon, gunicorn, load)
            demo.run()
            load.stop()
            report(database, demo, load)
            wrong = check(database, load)
            wrong += [f"gunicorn ended with exit status {status}" for status in [gunicorn.stop()] if status]
            wrong += [f"pharaohd ended with exit status {status}" for status in [daemon.stop()] if status]
            return wrong
        finally:
            if load is not None:
                load.stop()
            if gunicorn is not None:
                gunicorn.stop()
            daemon.clean_up()
            database.close()


def tail(path: Path, line_count: int = 15) -> str:
    """The last lines of a log."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(f"  {line}" for line in lines[-line_count:])


def _leave(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def main() -> int:
    """Runs the demo in a temporary directory and returns the exit status."""
    signal.signal(signal.SIGTERM, _leave)
    with tempfile.TemporaryDirectory(prefix="pharaoh-demo-") as name:
        directory = Path(name)
        try:
            wrong = play(directory)
        except (DemoError, OSError, RuntimeError, http.client.HTTPException) as error:
            wrong = [str(error) or repr(error)]
        if not wrong:
            say("\nEvery order has an id of its own.")
            return 0
        say(red("\nTHE DEMO FAILED"))
        for text in wrong:
            say(red(f"  {text}"))
        for log in ("pharaohd.log", "gunicorn.log"):
            say(f"\nend of {log}:\n{tail(directory / log)}")
        return 1


if __name__ == "__main__":
    sys.exit(main())

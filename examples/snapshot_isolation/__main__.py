"""A bank on top of it: `init` makes accounts, `transfer` moves money between them, `audit` counts it in one snapshot.

Run as many of them at once as you like, and kill any of them, or Pharaoh, at any moment.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import libpharaoh
from examples.snapshot_isolation.store import ConflictError, Store
from examples.snapshot_isolation.transactions import Transaction
from libpharaoh.errors import PharaohError

TOTAL = "total"
AMOUNT_MAX = 10
CONFLICT_PAUSE_S = 0.02


def say(text: str) -> None:
    """A line, in one piece: many processes print at once, and may be killed meanwhile."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def account(number: int) -> str:
    return f"account-{number:04}"


def accounts(store: Store) -> list[str]:
    return [key for key in store.names() if key != TOTAL]


def init(store: Store, client: libpharaoh.Client, count: int, balance: int) -> None:
    transaction = Transaction(store, client)
    for number in range(count):
        transaction.put(account(number), balance)
    transaction.put(TOTAL, count * balance)
    transaction.commit()


def transfer(store: Store, client: libpharaoh.Client, source: str, target: str, amount: int) -> int:
    """Moves the money, or less when the source has less. Returns when it was committed. Raises ConflictError."""
    transaction = Transaction(store, client)
    have, other = transaction.get(source), transaction.get(target)
    assert have is not None, source
    assert other is not None, target
    amount = min(amount, have)
    transaction.put(source, have - amount)
    transaction.put(target, other + amount)
    return transaction.commit()


def transfers(store: Store, client: libpharaoh.Client, deadline_s: float) -> None:
    """Random ones, a line for each: committed at, from, to."""
    keys = accounts(store)
    done = conflicts = 0
    while time.monotonic() < deadline_s:
        source, target = random.sample(keys, 2)
        try:
            committed = transfer(store, client, source, target, random.randint(1, AMOUNT_MAX))
        except ConflictError:
            conflicts += 1
            time.sleep(random.uniform(0, CONFLICT_PAUSE_S))
        except PharaohError as error:
            if not error.retryable:
                raise
        else:
            done += 1
            say(f"{committed} {source} {target}")
    say(f"{done} transfers, {conflicts} conflicts")


def audit(store: Store, client: libpharaoh.Client, deadline_s: float) -> bool:
    """Adds up all accounts in one snapshot after the other, at least one. A line for each; False when money is lost."""
    keys = accounts(store)
    while True:
        try:
            transaction = Transaction(store, client)
            total = sum(transaction.get(key) or 0 for key in keys)
            expected = transaction.get(TOTAL)
        except PharaohError as error:
            if not error.retryable:
                raise
            continue
        say(f"snapshot {transaction.start}: {total} in {len(keys)} accounts")
        if total != expected:
            say(f"but it must be {expected}")
            return False
        if time.monotonic() >= deadline_s:
            return True


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.snapshot_isolation", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/bank"), help="directory (default: %(default)s)")
    parser.add_argument("--socket", help="of Pharaoh (default: PHARAOH_SOCKET, else the host's)")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("init", help="make a store with accounts")
    make.add_argument("--accounts", type=int, default=20)
    make.add_argument("--balance", type=int, default=100, help="of each account")
    make.add_argument("--shards", type=int, default=3, help="files")
    for name, what in ("transfer", "move money at random"), ("audit", "add up all accounts, snapshot after snapshot"):
        command = commands.add_parser(name, help=what)
        command.add_argument("--seconds", type=float, default=0.0 if name == "audit" else 1.0)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    with libpharaoh.connect(options.socket, name="snapshot_isolation") as client:
        if options.command == "init":
            init(Store.create(options.store, options.shards), client, options.accounts, options.balance)
            return 0
        store = Store(options.store)
        deadline_s = time.monotonic() + options.seconds
        if options.command == "transfer":
            transfers(store, client, deadline_s)
            return 0
        return 0 if audit(store, client, deadline_s) else 1


if __name__ == "__main__":
    sys.exit(main())

"""`python -m examples.log --help`. Exit status 3: fenced, another process has this name now."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

import libpharaoh
from examples.log.consumer import Member
from examples.log.files import Log, LogError
from examples.log.producer import Producer
from examples.log.verify import findings
from libpharaoh import Client
from libpharaoh.errors import FencedError, PharaohError

FENCED = 3
POLL_S = 0.02


def init(arguments: argparse.Namespace, client: Client) -> None:
    Log.create(arguments.log, arguments.partitions, client)


def produce(arguments: argparse.Namespace, client: Client) -> None:
    """Prints how many lines are in the log, after each batch. Started again, it goes on behind them."""
    producer = Producer(log := Log(arguments.log), client, arguments.name)
    with open(arguments.file) as file:
        lines = (line.removesuffix("\n") for line in itertools.islice(file, producer.position, None))
        while batch := list(itertools.islice(lines, arguments.batch)):
            producer.send(producer.position // arguments.batch % len(log.partitions), batch)
            print(producer.position, flush=True)


def consume(arguments: argparse.Namespace, client: Client) -> None:
    """Prints partition, offset and payload of each record, and then commits."""
    member = Member(Log(arguments.log), client, arguments.group, arguments.name, arguments.absence)
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < arguments.idle:
        generation = member.generation
        deliveries = member.poll()
        if member.generation != generation:
            print(f"generation {member.generation}", file=sys.stderr, flush=True)
        if not deliveries:
            time.sleep(POLL_S)
            continue
        for partition, first, payloads in deliveries:
            for offset, payload in enumerate(payloads, first):
                print(partition, offset, payload)
        sys.stdout.flush()
        idle_since = time.monotonic()
        try:
            member.commit()
        except FencedError as error:
            print(f"not committed: {error}", file=sys.stderr, flush=True)  # the next generation has these partitions


def verify(arguments: argparse.Namespace) -> int:
    log = Log(arguments.log)
    found = list(findings(log))
    print("\n".join(found or [f"sound: {log.records()} records"]))
    return 1 if found else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.log", description="A log in files, counted by Pharaoh.")
    parser.add_argument("--socket", help="the daemon's; default PHARAOH_SOCKET, else /run/pharaohd/rpc.sock")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for a daemon that is down")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("init", help="make a log")
    command.add_argument("log", help="a directory that is not there yet")
    command.add_argument("--partitions", type=int, default=4)
    command = commands.add_parser("produce", help="append the lines of a file, each once")
    command.add_argument("log")
    command.add_argument("name", help="of the producer; a process of the same name is succeeded")
    command.add_argument("file")
    command.add_argument("--batch", type=int, default=20, help="lines; the same each time that the file is produced")
    command = commands.add_parser("consume", help="print records, as a member of a group")
    command.add_argument("log")
    command.add_argument("group")
    command.add_argument("name", help="of the member; a process of the same name is succeeded")
    command.add_argument("--idle", type=float, default=float("inf"), help="end after so many seconds without a record")
    command.add_argument("--absence", type=float, default=2.0, help="seconds after which a silent member is excluded")
    command = commands.add_parser("verify", help="check a log that nobody writes to")
    command.add_argument("log")
    return parser.parse_args()


def main() -> int:
    arguments = parsed()
    try:
        if arguments.command == "verify":
            return verify(arguments)
        run = {"init": init, "produce": produce, "consume": consume}[arguments.command]
        with libpharaoh.connect(arguments.socket, name="examples.log", timeout=arguments.timeout) as client:
            run(arguments, client)
    except (LogError, OSError, PharaohError) as error:
        print(error, file=sys.stderr)
        return FENCED if isinstance(error, FencedError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Captures the changes of tables in a PostgreSQL (with wal_level=logical) as events with rising Pharaoh ids.

`capture` may be killed at any moment and started again: no change is lost, none is written twice.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import psycopg

import libpharaoh
from examples.change_capture.capture import LostError, Sink, Source, follow, join, replay

RECONNECT_S = 0.2


def capture(options: argparse.Namespace, sink: Sink) -> None:
    """Until the end, over all failures of the database."""
    with libpharaoh.connect(options.socket, name="change_capture") as client:
        while True:
            try:
                source = Source(options.dsn, options.slot)
                try:
                    join(source, sink, options.tables)
                    follow(source, sink, client, once=options.once)
                finally:
                    source.close()
                return
            except psycopg.OperationalError as error:
                print(f"{error}; again in a moment", file=sys.stderr)
                time.sleep(RECONNECT_S)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.change_capture", description=__doc__)
    parser.add_argument("--sink", type=Path, default=Path("var/events.sqlite"), help="file (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("capture", help="write changes to the sink as they are committed")
    run.add_argument("--dsn", default="", help='of PostgreSQL, as "host=/run/postgresql dbname=shop" (or PGHOST, …)')
    run.add_argument("--socket", help="of Pharaoh (default: PHARAOH_SOCKET, else the host's)")
    run.add_argument("--slot", default="pharaoh", help="the slot's name, and the publication's (default: %(default)s)")
    run.add_argument("--once", action="store_true", help="end when all that was committed is written")
    run.add_argument("tables", nargs="+", metavar="TABLE", help="whose changes a new slot takes")
    show = commands.add_parser("show", help="print the events, one in a line")
    show.add_argument("--after", type=int, default=0, metavar="ID", help="only those with a greater id")
    commands.add_parser("replay", help="print the tables that the events make")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    options.sink.parent.mkdir(parents=True, exist_ok=True)
    sink = Sink(options.sink)
    if options.command == "show":
        for event in sink.events(options.after):
            print(json.dumps(event._asdict()))
    elif options.command == "replay":
        print(json.dumps(replay(sink.events()), indent=2))
    else:
        try:
            capture(options, sink)
        except LostError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

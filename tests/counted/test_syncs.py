"""How often a coordinator syncs that is asked now and then (F59): any pace is ordinary, and silence costs nothing."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.host import keys_of
from tests.support.wire import Wire

PACES_S = (0.9, 0.3, 0.1)
SECONDS = 20.0
QUIET_S = 5.0
BEGINNING = 3
"""So many ids may wait for a sync: nobody had asked before."""
HELD_UP_S = 0.1
CALM_S = 2.0
"""For so long after this process was held up by that much no wait is counted: daemon and disk were, too."""


@dataclass
class Paced:
    """One id each so often, of one coordinator."""

    daemon: Daemon
    coordinator: int
    pace_s: float
    wire: Wire
    syncs: int = 0
    due_s: float = 0.0
    ids: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)

    def stalls(self) -> int:
        return self.daemon.worker(self.coordinator).stalls

    def turn(self, now_s: float, key: str, *, calm: bool) -> None:
        if now_s < self.due_s:
            return
        before = self.stalls()
        method, params = ("get_timestamp", [key]) if len(self.ids) % 2 else ("next_id", [])
        self.ids.append(int(self.wire.ask(method, *params)))
        if self.stalls() != before and calm:
            self.waited.append(len(self.ids))
        self.due_s = max(self.due_s + self.pace_s, now_s + self.pace_s / 2)


@pytest.mark.timeout(600)
def test_one_id_now_and_then(directory: Path, effort: float) -> None:
    """F59: fewer syncs than ids; no id waits for one but the first three; a coordinator that rests does not sync."""
    keys = keys_of(4)
    with Daemon(directory, coordinators=4) as daemon, contextlib.ExitStack() as held:
        paced = [
            Paced(daemon, number, pace_s, held.enter_context(Wire(daemon.own_socket(number))))
            for number, pace_s in enumerate(PACES_S)
        ]
        resting = daemon.worker(3).syncs
        start_s = time.monotonic()
        for one in paced:
            one.syncs = daemon.worker(one.coordinator).syncs
            one.due_s = start_s
        turned_s = start_s
        calm_from_s = 0.0
        while turned_s < start_s + SECONDS * max(1.0, effort):
            now_s = time.monotonic()
            if now_s > turned_s + HELD_UP_S:
                calm_from_s = now_s + CALM_S
            turned_s = now_s
            for one in paced:
                one.turn(now_s, keys[one.coordinator], calm=now_s >= calm_from_s)
            time.sleep(0.005)
        for one in paced:
            syncs = daemon.worker(one.coordinator).syncs - one.syncs
            print(f"one id each {one.pace_s} s: {len(one.ids)} ids, {syncs} syncs, waited: {one.waited}")
            assert 0 < syncs < len(one.ids)
            assert all(number <= BEGINNING for number in one.waited), "an id of an ordinary pace waited for a sync"
            assert one.ids == sorted(set(one.ids))
        assert daemon.worker(3).syncs == resting, "syncs of a coordinator that nobody asked"
        time.sleep(3.0)  # the reserve of those that were asked a moment ago
        before = [worker.syncs for worker in daemon.workers()]
        time.sleep(QUIET_S)
        assert [worker.syncs for worker in daemon.workers()] == before, "syncs although nobody asks"

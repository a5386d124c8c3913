"""A member of a consumer group: each record at least once, by whoever has its partition in the present generation."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import NamedTuple

from examples.log.files import Log, State, SucceededError, checked
from libpharaoh import Client
from libpharaoh.errors import FencedError, SessionForgottenError

BATCHES_PER_POLL = 16
PATIENCE_S = 0.5
"""How long an offset may stay empty before a consumer looks for its batch in the journals."""


class Delivery(NamedTuple):
    """Records that are to be processed."""

    partition: int
    offset: int
    payloads: list[str]


class Member:
    """A member, from its first `poll` on. One that does not poll for `absence_s` seconds loses its partitions."""

    generation = 0

    def __init__(self, log: Log, client: Client, group: str, name: str, absence_s: float = 2.0) -> None:
        self._log, self._client, self._name, self._absence_s = log, client, checked(name), absence_s
        self._states = log.group(group)
        self._number = self._states.last()
        self._counter = log.counter(group)
        self._session = client.create_session(name, after=self._state().newest or None)
        self._joins = 0
        self._positions: dict[int, int] = {}
        self._empty_since: dict[int, float] = {}
        self._looked_at: dict[str, int] = {}
        """Producer → the newest of its batches that is known to be placed."""

    def poll(self) -> list[Delivery]:
        """Records to process before `commit`. Raises FencedError when another process took this member's name."""
        with open(self._sign_of_life(self._name, self._session), "w"):
            pass
        state = self._state()
        if state.members.get(self._name) != self._session or self._must_exclude(state):
            state = self._join()
        if state.generation != self.generation:
            self.generation = state.generation
            mine = sorted(state.members).index(self._name)
            partitions = range(mine, len(state.committed), len(state.members))
            self._positions = {partition: state.committed[partition] for partition in partitions}
            self._empty_since = {}
        return [delivery for partition in self._positions for delivery in self._next(partition)]

    def commit(self) -> None:
        """Notes that all that `poll` returned was processed. Raises FencedError when a newer generation has begun."""
        while True:
            state = self._state()
            if state.generation != self.generation:
                raise SucceededError(f"generation {state.generation} has followed {self.generation}")
            committed = [self._positions.get(partition, offset) for partition, offset in enumerate(state.committed)]
            if self._states.put(self._number + 1, replace(state, committed=committed)):
                return

    def _state(self) -> State:
        self._number = self._states.last(self._number)
        return self._states.get(self._number) or State(0, {}, 0, [0] * len(self._log.partitions))

    def _join(self) -> State:
        """Begins a generation with all members that live. Every one of them takes its share of it."""
        while True:
            generation = self._client.join_group(self._counter, self._name, token=(self._session, self._joins))
            self._joins += 1
            while (state := self._state()).generation < generation:
                members = {name: session for name, session in state.members.items() if self._lives(name, session)}
                members[self._name] = self._session
                state = State(generation, members, max(state.newest, self._session), state.committed)
                if self._states.put(self._number + 1, state):
                    return state

    def _must_exclude(self, state: State) -> bool:
        """Whether a member is absent and this is the first of the others."""
        living = [name for name, session in sorted(state.members.items()) if self._lives(name, session)]
        return len(living) < len(state.members) and living[:1] == [self._name]

    def _sign_of_life(self, name: str, session: int) -> str:
        os.makedirs(f"{self._log.path}/alive", exist_ok=True)
        return f"{self._log.path}/alive/{name}@{session}"

    def _lives(self, name: str, session: int) -> bool:
        """May be wrong: a member that is excluded and comes back only joins again."""
        try:
            return time.time() - os.stat(self._sign_of_life(name, session)).st_mtime < self._absence_s
        except FileNotFoundError:
            return False

    def _next(self, partition: int) -> list[Delivery]:
        """Batches of a partition from its position on."""
        deliveries: list[Delivery] = []
        while len(deliveries) < BATCHES_PER_POLL:
            offset = self._positions[partition]
            batch = self._log.partitions[partition].get(offset)
            if batch is None:
                break
            deliveries.append(Delivery(partition, offset, batch.payloads))
            self._positions[partition] = offset + len(batch.payloads)
        now = time.monotonic()
        if deliveries or now - self._empty_since.setdefault(partition, now) >= PATIENCE_S:
            self._empty_since[partition] = now
            if not deliveries:
                self._look_for_batches(partition)
        return deliveries

    def _look_for_batches(self, partition: int) -> None:
        """Finishes what producers began in this partition, for they may be dead."""
        for producer in self._log.producers():
            batch = self._log.newest(producer)
            if batch is None or batch.partition != partition or self._looked_at.get(producer) == batch.number:
                continue
            try:
                self._log.finish(batch, self._client)
            except FencedError:
                continue  # placed meanwhile: the producer has gone on
            except SessionForgottenError:
                pass  # nobody can tell any more; the other producers' batches can go on
            self._looked_at[producer] = batch.number

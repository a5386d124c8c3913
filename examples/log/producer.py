"""The producer: every payload of its source once, in order, whatever is killed."""

from __future__ import annotations

from collections.abc import Sequence

from examples.log.files import Batch, Log, SucceededError
from libpharaoh import Client


class Producer:
    """The process that `name` stands for from now on, in place of any before it."""

    position = 0
    """How many payloads of the source are in the log: where to go on."""

    def __init__(self, log: Log, client: Client, name: str) -> None:
        self._log, self._client, self._name = log, client, name
        self._journal = log.journal(name)
        self._number = self._journal.last()
        before = self._journal.get(self._number)
        # With `after` it is greater than its predecessor's, also when a coordinator with a slower clock gives it.
        self._session = client.create_session(name, after=before.session if before else None)
        while True:
            if before is not None:
                self._fence(before.session > self._session)
                self.position = before.position
            if self._put(0, []):
                break
            self._number = self._journal.last(self._number)
            before = self._journal.get(self._number)
        newest = log.newest(name)
        if newest is not None:
            log.finish(newest, client)
        self._unplaced: Batch | None = None

    def send(self, partition: int, payloads: Sequence[str]) -> int:
        """Appends payloads and returns the first one's offset; they are durable then.

        Raises FencedError when another process has taken over, and what `assign_offset` raises: then the payloads are
        in the journal, and the next `send` or Producer places them before anything else. `position` tells.
        """
        if not payloads:
            raise ValueError("a batch has at least one payload")
        if self._unplaced is not None:
            self._log.place(self._unplaced, self._client)
        self._unplaced = self._put(partition, list(payloads))
        self._fence(self._unplaced is None)
        assert self._unplaced is not None
        offset = self._log.place(self._unplaced, self._client)
        self._unplaced = None
        return offset

    def _put(self, partition: int, payloads: list[str]) -> Batch | None:
        """The journal's next entry; None when its place is taken."""
        position = self.position + len(payloads)
        batch = Batch(self._name, self._session, self._number + 1, partition, position, payloads)
        if not self._journal.put(batch.number, batch):
            return None
        self._number, self.position = batch.number, position
        return batch

    def _fence(self, overtaken: bool) -> None:
        if overtaken:
            raise SucceededError(f"producer {self._name}")

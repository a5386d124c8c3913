"""What csrc/native.c exports."""

class Source:
    last: int
    """The greatest id of next_id and next_ids; if causal, of all."""

    def pop(self) -> int:
        """The next id of the ring, or 0. Needs no lock."""

    def draw_from(self, address: int, keeper: object, /) -> None:
        """Pops come from the ring at this address from now on, which lives as long as `keeper`; 0 for none."""

class Client:
    def __init__(self, session: Source) -> None: ...
    def next_id(self) -> int:
        """A unique id, greater than all that next_id and next_ids of this client returned before; from shared memory.

        In a client made by connect(causal=True) it is greater than the ids of its strict calls too.

        Raises a retryable error when the daemon does not answer in time; ClientClosedError after close().

        >>> client.next_id()                        # doctest: +SKIP
        408559031853465647
        """

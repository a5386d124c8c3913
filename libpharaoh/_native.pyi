"""What csrc/native.c exports."""

class Source:
    last: int
    """The greatest id that the client has handed out."""

    def pop(self) -> int:
        """The next id of the ring, or 0. Needs no lock."""

    def draw_from(self, address: int, keeper: object, /) -> None:
        """Pops come from the ring at this address from now on, which lives as long as `keeper`; 0 for none."""

class Client:
    def __init__(self, session: Source) -> None: ...
    def next_id(self) -> int:
        """A unique id, greater than every earlier one of this client; from shared memory when there is a ring.

        Raises a retryable error when the daemon does not answer in time; ClientClosedError after close().

        >>> client.next_id()                        # doctest: +SKIP
        408559031853465647
        """

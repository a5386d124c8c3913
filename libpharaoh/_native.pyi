"""What csrc/native*.c export."""

import array
import socket
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple, final

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

RING_REVOKED: int
RING_FORKED: int
RING_VERSION: int
RING_DAMAGED: int

class Forked(Exception):
    """The call under way was begun by another process, which goes on with it."""

def process() -> int:
    """A number that tells this process from its parent and its children, however they were made."""

def guarded(function: _F, /) -> _F:
    """A function or method whose result is that of one process: in a child forked meanwhile it begins again."""

def connect(socket: socket.socket, path: bytes, process: int, /) -> None:
    """Connects a Unix socket that does not block, in the name of this process alone. Raises Forked, OSError."""

def send(socket: socket.socket, data: bytes, deadline: float, process: int, /) -> None:
    """Sends all of it, in the name of this process alone. Raises Forked, OSError."""

def receive(socket: socket.socket, deadline: float, process: int, /) -> tuple[bytes, Descriptors]:
    """Some bytes, none at the stream's end, and the descriptors that came with them. Raises Forked, OSError."""

@final
class Descriptors:
    """Descriptors that came with a message."""

    def __len__(self) -> int: ...
    def close(self) -> None:
        """Closes those that nobody has taken."""

    def detach(self) -> list[int]:
        """Their numbers. They are the caller's to close from now on."""

class Ring:
    coordinator: int
    """Whose ring it is."""

    def __init__(self, descriptors: Descriptors, skew_ns: int, age_ns: int) -> None:
        """Maps the three descriptors of an attach reply, and takes them over. Raises OSError, Forked."""

    def strict(self, coordinator: int | None, after: int, timeout_ns: int, /) -> int:
        """An id issued now, of the coordinator that owns the key, greater than `after`, or 0. None: without a key."""

    def wait(self, timeout_ns: int, /) -> None:
        """Asks for grants and sleeps until there is something to take, the ring is lost, or the time is over."""

    def raise_floor(self, id: int, /) -> None:
        """From now on only ids greater than `id`."""

    def status(self) -> int:
        """A number of enum ph_ring_status."""

    def close(self) -> None:
        """Gives memory and doorbell back, as soon as no other thread uses them."""

class Source:
    @property
    def last(self) -> int:
        """The greatest id of next_id and next_ids; if causal, of all."""

    timeout: float
    """Seconds that a call may take."""
    deadline: float
    """When the call ends that has the lock."""
    caller: int
    """The process in which that call began."""
    closed: bool
    """Whether everything is let go at the end of each call."""
    dirty: bool
    """Whether the next call begins by letting everything go."""

    def pop(self) -> int:
        """The next id of the ring, or 0. Needs no lock."""

    def take(self, ids: array.array[int], start: int, /) -> int:
        """Fills an array('Q') from `start` on with increasing ids of the ring. How many there were. Needs no lock."""

    def note(self, id: int, /) -> None:
        """Remembers an id in `last` if it is greater. Needs no lock."""

    def draw_from(self, ring: Ring | None, /) -> None:
        """Pops come from this Ring from now on, or from None."""

    def locked(self, function: Callable[[*_Ts], _T], /, *arguments: *_Ts) -> _T:
        """Calls the function with the lock, which is given back whatever comes in between.

        Raises ClientBusyError when this very thread has the lock, TimedOutError, and what the function raises.
        """

class Client:
    def __init__(self, session: Source) -> None: ...
    def next_id(self) -> int:
        """A unique id, greater than all that next_id and next_ids of this client returned before; from shared memory.

        In a client made by connect(causal=True) it is greater than the ids of its strict calls too.

        Raises a retryable error when the daemon does not answer in time; ClientClosedError after close().

        >>> client.next_id()                        # doctest: +SKIP
        408559031853465647
        """

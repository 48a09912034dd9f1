"""The counting itself: a call from C for what happened, a few aligned words written; and a clock that C reads."""

from collections.abc import Callable

def next_number(words: memoryview) -> int:
    """How often it was called on this memory before, by any process."""

def unseen() -> memoryview:
    """Memory for a block that stands on no board."""

class Clock:
    """A function that gives nanoseconds, called; time.perf_counter_ns without the detour through Python."""

    def __init__(self, f: Callable[[], int]) -> None: ...
    def now(self) -> int:
        """Nanoseconds."""

class Cells:
    """The cells of one block, as who counts sees them. words: the block; None: what is counted nobody sees."""

    def __init__(self, words: memoryview | None = None) -> None: ...
    def move(self, words: memoryview) -> None:
        """Count in another block from now on."""

    def request(self, status: int, items: int, ns: int) -> None:
        """A request is answered, `ns` after the end of its head. items: how many it held; -1: it was no message."""

    def refused(self, status: int) -> None:
        """A request is refused of which nobody knows when it began."""

    def lost(self, reason: str) -> None:
        """A request ended otherwise than with rows. reason: one of DROPS or ERRORS."""

    def decoded(self, ns: int) -> None:
        """The items of a request were read."""

    def encoded(self, ns: int) -> None:
        """The answer of a request was written down."""

    def cut(self, why: str, items: int) -> None:
        """A batch is cut. why: one of CUTS."""

    def waited(self, ns: int, items: int) -> None:
        """So many items waited so long for their batch."""

    def done(self, busy: int, process_request: int, run_inference: int, process_response: int, retries: int) -> None:
        """A batch is back. busy: ns for which the executor had it, and no other before it. retries: repeated calls.

        The rest: ns that the methods took, -1 for one that was not run.
        """

    def queue(self, items: int, size: int) -> None:
        """So much waits. size: bytes."""

    def in_flight(self, requests: int) -> None:
        """So many requests are taken and not answered."""

    def connections(self, more: int) -> None:
        """A connection is opened, or, with -1, closed."""

"""The counting itself: a call from C for what happened, a few aligned words written."""

def next_number(words: memoryview) -> int:
    """How often it was called on this memory before, by any process."""

class Cells:
    """The cells of one block, as who counts sees them. words: the block, a memoryview of 64-bit words."""

    def __init__(self, words: memoryview) -> None: ...
    def move(self, words: memoryview) -> None:
        """Count in another block from now on."""

    def request(self, status: int, items: int, ns: int) -> None:
        """A request was answered, `ns` after its head. items: how many it held; -1: it was no message."""

    def refused(self, status: int) -> None:
        """A request was refused of which nobody knows when it began."""

    def dropped(self, why: int) -> None:
        """It got no answer of the model. why: index in DROPS."""

    def stage(self, which: int, ns: int) -> None:
        """A stage was gone through. which: index in STAGES."""

    def waited(self, ns: int, items: int) -> None:
        """So many items waited so long for their batch."""

    def cut(self, why: int, items: int) -> None:
        """A batch was cut. why: index in CUTS."""

    def done(self, ns: int, retries: int) -> None:
        """A batch came back, which was with the executor for so long."""

    def queue(self, items: int, size: int) -> None:
        """So much waits now. size: bytes."""

    def in_flight(self, requests: int) -> None:
        """So many requests have no answer now."""

    def connections(self, more: int) -> None:
        """A connection more, or with -1 one less."""

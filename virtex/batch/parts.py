"""A batch that is run again in parts: its model raised, or the memory of a device does not hold all of it.

Rules: as of steps.py. A part is computed from what the clients sent, for the model may have written to what it got; on
a device it got copies, and a part has the same rows. Its answers are made before the next part runs, for the model may
write there again.

A batch that failed is run in four parts. Each part that fails is split in four again; an item that fails alone is a
culprit, of which its request gets the error. Four parts rather than two: that takes no more runs for one culprit, fewer
items are computed again, and it is known after four runs, not six, that the model fails on everything.

Of n items: 2 * ceil(log2 n) further runs for each culprit at most, and n for all of them together; n + 3 where n is 7
to 15, for there no way of searching keeps both bounds. A run that ends with an ItemError that names its item settles at
least that one, so it counts among the n.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from itertools import pairwise
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from ..errors import HandlerError, ItemError
from .isolate import failure

if TYPE_CHECKING:
    from .steps import Outcome, Steps

FEW = 6  # items: to run each alone takes no more than 2 * ceil(log2 n) runs
WAYS = 4
PROVEN = 1000  # batches in parts of the size that fitted, after which twice as many items are tried

Failed = tuple[list[int], Exception]  # a part, and what its run raised

_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


async def after_failure(
    steps: Steps, work: Any, counts: list[int], asked: list[Any] | None, error: Exception
) -> list[Outcome]:
    """One outcome per request of a batch of which a whole run raised the error. asked: who asked for each item."""
    parts = Parts(steps, work, counts, asked)
    parts.is_untouched = steps.gives_copies()
    if parts.settles(error, parts.all):
        rest = parts.wanted(parts.all)
        if rest and not steps.may_run_again(work):
            parts.fail_all(error)
        elif rest and (found := await parts.tried(rest)) is not None:
            await parts.find(*found)
    elif len(parts.all) == 1:
        parts.blame(0, error)
    elif steps.may_run_again(work):
        await parts.find(parts.all, error)
    else:
        parts.fail_all(error)
    return parts.outcomes()


async def in_fitting_parts(steps: Steps, work: Any, counts: list[int], asked: list[Any] | None) -> list[Outcome]:
    """One outcome per request of a batch that is larger than what fitted into the device's memory."""
    parts = Parts(steps, work, counts, asked)
    parts.is_untouched = True
    parts.most, parts.is_known = steps.fits, True
    parts.spare = WAYS * -(-len(parts.all) // steps.fits)
    await parts.run([(parts.all, None)])
    if not parts.has_failed:
        steps.proven += 1
        if steps.proven >= PROVEN:  # a single large item may have been to blame
            steps.fits, steps.proven = 2 * steps.fits, 0
    return parts.outcomes()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is torch's OutOfMemoryError, or another of that name: torch is not imported to ask."""
    return any(each.__name__ == "OutOfMemoryError" for each in type(error).__mro__)


class Parts:
    """The items of one batch, by their places in it, and what has come of each so far.

    all: the places. is_untouched: whether the model has seen nothing of the batch but copies. most: items in one run;
    is_known: whether more are known not to fit. spare: runs beyond as many as there are items. has_failed: whether a
    run has.
    """

    def __init__(self, steps: Steps, work: Any, counts: list[int], asked: list[Any] | None) -> None:
        self._steps = steps
        self._sources = steps.sources(work)
        self._counts = counts
        self._asked = asked
        self._owners = [(request, k) for request, count in enumerate(counts) for k in range(count)]
        self._found: list[Any] = [None] * len(self._owners)  # the outcome of each item, as of a request of its own
        self._errors: dict[int, Any] = {}  # by request: of the first item that was found to fail
        self.all = list(range(len(self._owners)))
        self.is_untouched = self.has_failed = False
        self.most, self.is_known, self.spare = len(self.all), False, 0
        self._runs = 0
        self._fitted = 0  # items in the largest run that gave rows
        self._gave_wrong_rows = False  # some run did, and so has not raised
        self._has_overflowed = self._is_large = False  # several items did not fit into memory, a single one did not
        for request in steps.given_up(self._sources):
            self._errors[request] = HandlerError("the request was given up")

    async def find(self, part: list[int], error: Exception) -> None:
        """A run of all that is left has failed: find on whose items it does, and compute the others."""
        self._saw(error)
        if is_out_of_memory(error):
            await self.run([(part, error)])
            return
        parts = [[i] for i in part] if len(part) <= FEW else _quarters(part)
        failed: list[Failed] = []
        for each in parts:
            if (found := await self.tried(each)) is not None:
                failed.append(found)
        if len(failed) == len(parts) and not self._refused() and not any(_says_whose(raised) for _, raised in failed):
            others = self._others(failed)
            if others:
                await self.tried(others)
            self.fail_all(error)
        else:
            await self.run([*failed])

    def _others(self, failed: list[Failed]) -> list[int]:
        """The items of all but those who have some in each part that failed: a large request, which may be to blame."""
        in_all = set.intersection(*[{self._owners[i][0] for i in part} for part, _ in failed])
        return [i for i in self.wanted(self.all) if self._owners[i][0] not in in_all] if in_all else []

    async def run(self, waiting: list[Failed | tuple[list[int], None]]) -> None:
        """Go on until everything is settled. waiting: parts, in order, each with what its run raised, if it was run."""
        stack = waiting[::-1]
        while stack:
            ran, error = stack.pop()
            part = self.wanted(ran)
            if not part:
                continue
            if error is None or len(part) < len(ran):  # what it raised may have been about those who are gone
                if len(part) > self.most:
                    stack.append((part[self.most :], None))
                    part = part[: self.most]
                if (found := await self.tried(part)) is not None:
                    stack.append(found)
                elif len(part) == self.most and not self.is_known:
                    self.most *= 2
            elif len(part) == 1:
                self.blame(part[0], error)
            elif is_out_of_memory(error):
                self.most, self.is_known, self._has_overflowed = (len(part) + 1) // 2, self._fitted > 0, True
                self._steps.make_room()
                stack.append((part, None))
            else:
                stack.extend((each, None) for each in reversed(self._split(part, stack)))
        self._learn()

    async def tried(self, part: list[int]) -> Failed | None:
        """Compute a part, without the requests that it refuses meanwhile; gives what was left and what that raised."""
        while part := self.wanted(part):
            if self.has_failed:
                self._steps.laps.retries += 1
                self._runs += 1
            try:
                outcomes = await self._computed(part)
            except Exception as error:
                if not self.settles(error, part):
                    return part, error
                continue
            self._fitted = max(self._fitted, len(part))
            for i, outcome in zip(part, outcomes, strict=True):
                self._take(i, outcome)
            return None
        return None

    async def _computed(self, part: list[int]) -> list[Outcome]:
        steps = self._steps
        told = None if self._asked is None else [self._asked[i] for i in part]
        places = [self._owners[i] for i in part]
        steps.came = False
        try:
            # Not in a variable: what an error's traceback refers to stays in memory.
            batch = [await steps.rebuilt(self._sources, part if self.is_untouched else None, places, told)]
        except Exception as error:
            if isinstance(error, (ItemError, HandlerError)) or is_out_of_memory(error):
                raise
            raise failure("process_request", error) from error
        return await steps.outcomes_of(batch.pop(), [1] * len(part), told, is_part=True)

    # ---- what comes of the items

    def wanted(self, part: list[int]) -> list[int]:
        """Those of the items whose requests may still be answered with rows."""
        return [i for i in part if self._owners[i][0] not in self._errors]

    def settles(self, error: Exception, part: list[int]) -> bool:
        """Whether what a run of the part raised is the answer of somebody in it, or, for wrong rows, of all."""
        self._saw(error)
        if isinstance(error, HandlerError) and self._steps.came:
            self._gave_wrong_rows = True
            for i in part:
                self._fail(i, error, named=False)
            return True
        index = error.index if isinstance(error, ItemError) else None
        if not isinstance(index, int) or index not in range(len(part)):
            return False
        self._fail(part[index], error)
        return True

    def blame(self, i: int, error: Exception) -> None:
        """An item fails alone: it is its request's error."""
        self._is_large |= is_out_of_memory(error)
        known = isinstance(error, (HandlerError, ItemError))
        self._fail(i, error if known else failure("run_inference", error))

    def fail_all(self, error: Exception) -> None:
        """Nobody is known to be to blame: each request that is left gets the same."""
        shared = error if isinstance(error, HandlerError) else failure("run_inference", error)
        for i in self.wanted(self.all):
            if self._found[i] is None:
                self._fail(i, shared, named=False)

    def _take(self, i: int, outcome: Outcome) -> None:
        self._found[i] = outcome
        if isinstance(outcome, (HandlerError, ItemError)):
            self._fail(i, outcome)

    def _fail(self, i: int, error: Any, named: bool = True) -> None:
        request, k = self._owners[i]
        if request not in self._errors:
            if named:
                needs_none = self._counts[request] == 1 and isinstance(error, HandlerError) and error.index is None
                error = error.at(None if needs_none else k)
            self._errors[request] = error

    def _saw(self, error: Exception) -> None:
        """Let go of what the failed run still holds: on a device there may be no room beside it."""
        self.has_failed = True
        for frame, _ in walk_tb(error.__traceback__):
            if not frame.f_code.co_flags & _SUSPENDS:  # to clear one that waits would end it
                with suppress(RuntimeError):
                    frame.clear()
        if is_out_of_memory(error):
            error.__traceback__ = error.__context__ = None

    def _refused(self) -> bool:
        return any(isinstance(error, ItemError) for error in self._errors.values())

    def outcomes(self) -> list[Outcome]:
        """One per request, at the end: nothing is kept here, for the traceback of an error leads back to all of it."""
        self._steps.laps.systemic = not (self._fitted or self._refused() or self._gave_wrong_rows)
        outcomes: list[Outcome] = []
        start = 0
        for request, count in enumerate(self._counts):
            found = self._errors.get(request)
            outcomes.append(_joined(self._found[start : start + count]) if found is None else found)
            start += count
        self._sources, self._found, self._errors = (), [], {}
        return outcomes

    # ---- how parts are cut

    def _split(self, part: list[int], stack: list[Failed | tuple[list[int], None]]) -> list[list[int]]:
        """Four parts, or single items where those could take more runs than there are items. stack: what else waits."""
        left = sum(self._found[i] is None for i in self.wanted(self.all))
        may_fail = sum(error is None and len(each) > 1 for each, error in stack)
        spare = len(self.all) + self.spare - self._runs - left - may_fail
        return [[i] for i in part] if len(part) <= FEW or spare < WAYS else _quarters(part)

    def _learn(self) -> None:
        """Remember how many items the device's memory holds; nothing where a single one is too large for it."""
        if self._has_overflowed and not self._is_large and self._fitted:
            self._steps.remember(self._fitted)


def _says_whose(error: Exception) -> bool:
    """Whether it says that items are wrong, or many, and not the model."""
    return isinstance(error, ItemError) or is_out_of_memory(error)


def _quarters(part: list[int]) -> list[list[int]]:
    """Four parts whose sizes differ by one at most, the larger ones first."""
    size, more = divmod(len(part), WAYS)
    ends = [i * size + min(i, more) for i in range(WAYS + 1)]
    return [part[start:stop] for start, stop in pairwise(ends)]


def _joined(found: list[Any]) -> Outcome:
    """The rows of one request, of which each item's came by itself."""
    first: Outcome = found[0]
    if len(found) == 1 or isinstance(first, Exception):
        return first
    if isinstance(first, list):
        return [value for values in found for value in values]
    try:
        return first.joined(found)
    except HandlerError as error:
        return error

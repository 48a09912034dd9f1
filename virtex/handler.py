"""What a user writes: a RequestHandler of three methods, or a TensorHandler that declares its inputs.

Rules: knows its steps, and what they run, for a dry run; neither HTTP nor queues.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from .batch.arrays import array_dtype, stacked
from .batch.costs import check_cost, costs_of
from .batch.device import Device
from .batch.items import refuse_declared, steps_for
from .batch.row_steps import TensorSteps
from .batch.rows import allocate
from .batch.steps import Steps
from .batch.texts import example_of, source_of
from .dry_run import reply_to
from .errors import HandlerError, ItemError
from .logs import event
from .message import HttpMessage
from .service.request import Request
from .tensor import Inputs, Tensor

log = logging.getLogger("virtex")


class RequestHandler(ABC):
    """The computation behind a service: decode a batch, run the model, encode one answer.

    Every method may be `async def`; then batches run as coroutines on the event loop, one at a time.

    A method may name one parameter more, and is told by it who asked: process_request() and run_inference() `requests`,
    a list of one Request for each item or row, in their order; process_response() `request`, that of its row. It counts
    by exactly that name and behind the first one; it is passed by name, also where it has a default. Any other that has
    to be passed is a TypeError at the start.

    decode_item: a function of one item, `decode_pil` say; process_request() then gets what it gave, and may be left
    out: the model takes the list. An item for which it raises ItemError is 422 for its request alone, of which nothing
    enters the batch. encode_item: a function of what process_response() gave, `encode_numpy` say; it makes the JSON
    value, and process_response() may be left out: it then gets the row. Both are plain functions, called without
    `self`. Set on an instance, by setup() at the latest, they hold for that one.

    accepts: media types, as ("image/jpeg", "text/*", "multipart/form-data"), whose bodies are items beside those of
    messages. Such a body is one item: bytes, of text/* a str. Each file of a form is one, as bytes, in order. JSON and
    application/x-npy are always messages, whatever wildcard stands here.
    """

    accepts: Sequence[str] = ()

    decode_item: Callable[[Any], Any] | None = None
    encode_item: Callable[[Any], Any] | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.decode_item is not None and cls.process_request is RequestHandler.process_request:
            cls.process_request = _as_it_is  # type: ignore[assignment]
        if cls.encode_item is not None and cls.process_response is RequestHandler.process_response:
            cls.process_response = _as_it_is  # type: ignore[assignment]

    @abstractmethod
    def process_request(self, data: list[Any]) -> Any:
        """Turn items into what the model takes.

        data: the JSON values of 1 to max_batch_size items, from any number of requests, and bytes where `accepts` says
        so; where decode_item is declared, what it made of them.

        Raise ItemError for an item that the service does not take (422 for its request alone; every decode_* of
        virtex.serial does). When it raises, it is called again with the items of one request at a time, and may be
        called with single items, to find whose fault it was: it should have no side effects.
        """

    @abstractmethod
    def run_inference(self, model_input: Any) -> Iterable[Any]:
        """Run the model once; give back one row per item, in order.

        model_input: what process_request() gave.

        Whatever iterates along its zeroth dimension will do: array, tensor, list, DataFrame or Series (by row). A
        tuple, mapping, str, bytes or set is refused, and so is any other number of rows than there were items. The
        memory may be written again by the next call.

        An exception in place of a row is its request's answer: an ItemError with its status, any other a 500. When it
        raises, it is called again with parts of the batch, made anew by process_request(), to find whose item it was.
        """

    @abstractmethod
    def process_response(self, model_output_item: Any) -> Any:
        """Turn one row into a JSON value; arrays, tensors, scalars of NumPy and what pandas has may stay as they are.

        model_output_item: one row of what run_inference() gave. Where encode_item is declared, it makes the JSON value
        of what is returned.

        A Content in its place is the whole answer of a request of one item; more items in that request are a 422.

        It is the answer as it is now: the dict that is returned may be filled again for the next row.
        """

    def cost(self, item: Any) -> float:
        """Say what an item costs, where http_server(max_batch_cost=) bounds a batch by it: tokens, pixels, seconds.

        item: as it stands in a request's `data`, bytes of a file, or one item of the array; not what decode_item makes.

        Called once for each item as its request is admitted, on the event loop in every executor, also while the model
        runs: it must return at once, and is a plain method. Gives a finite number from 0; another one, or whatever it
        raises, is a 500 of the item's request alone, ItemError its 422.
        """
        raise NotImplementedError

    def setup(self, worker: Worker) -> None:  # noqa: B027 (optional, not abstract)
        """Load the model; called once in each worker process, before the first request.

        worker: which of them this is, and what a handler says by that it should be replaced: it may be kept.

        One that raises is not torn down. It, the three methods and teardown() run on one thread and in one context: on
        the event loop's, which a plain setup() holds meanwhile, or with executor="thread" on the handler's own.
        """

    def teardown(self) -> None:  # noqa: B027
        """Let go of what setup() took; called once, after the last answer, or where the start fails behind setup()."""

    def example(self) -> list[Any]:
        """Give sample items, as they stand in a request's `data`, for whoever tries the service; empty: none.

        All bytes: they stand for files, where `accepts` takes any. `virtex check` tries them, and a warm-up runs them;
        the status page offers all others. Each calls it once, after setup(), as the three methods are called.
        """
        return []

    def validate(
        self, message: HttpMessage, strict: bool = False, *, request: Request | None = None
    ) -> HttpMessage | None:
        """Run the three methods over a message's items as the server would: on this thread, within an event loop.

        message: as a client would send it; items that are all bytes stand for files, where `accepts` takes any.
        strict: raise HandlerError naming the step, with the cause attached, or ItemError, where a step failed.
        request: who is to have asked, for methods that are told; its parameters are those of the message where that has
        some. None: a POST to / without headers.

        Where a loop runs here already, it is that one, as it stands; async methods have a thread of their own then.
        Returns the reply, or None with a line in the log when a step failed.
        """
        try:
            return reply_to(self, message, request)
        except (HandlerError, ItemError) as error:
            if strict:
                raise
            log.error("%s does not take the message: %s", type(self).__name__, error, exc_info=error.__cause__)
            return None

    def _own_steps(self) -> Steps:
        """The methods, as they run over a batch. Raises TypeError for what is declared in vain."""
        return steps_for(self)

    def _work_of(self, items: list[Any]) -> Any:
        """What the steps run for one request of these items. Raises ItemError for one that is not as declared."""
        dtype = array_dtype(self)
        return [items if dtype is None else stacked(items, dtype, _as_admitted, len(orjson.dumps(items)))]

    def _own_costs(self, work: Any) -> list[float]:
        """What the items of such work cost, by its own cost(); nothing where it has none. Raises as costs_of()."""
        cost = own_cost(self)
        return [] if cost is None else costs_of(cost, work[0])

    def _have_numbers(self, items: list[Any]) -> bool:
        """Whether any array of these items came as numbers of JSON: then those of Rows are answered so."""
        return False


def own_cost(handler: RequestHandler) -> Callable[[Any], Any] | None:
    """Its cost(), checked; None where it has none of its own. Raises TypeError for one that can't be called."""
    cost = handler.cost
    if getattr(cost, "__func__", None) is RequestHandler.cost:
        return None
    check_cost(cost, f"{type(handler).__name__}.cost")
    return cost


def _as_admitted(count: int, nbytes: int) -> None:
    """Nobody else's memory is at stake."""


def _as_it_is(self: RequestHandler, given: Any) -> Any:
    """A method that is left out."""
    return given


class TensorHandler(RequestHandler):
    """A model whose inputs are declared: requests are decoded straight into the rows of the batch that it reads.

    inputs: a Tensor, and run_inference gets one array (n, *shape), C-contiguous, aligned to 64 bytes; or a dict of
    them, and items are JSON objects of these names and run_inference gets a dict of arrays. An item of another dtype
    or shape is refused with 422 and never enters a batch. The batch is valid until run_inference has been answered:
    what the handler keeps of it stays its own.
    outputs: the same for what run_inference returns, one row per item; declared ones are checked and published.
    device: name of a torch device; "cuda" is the GPU of number worker.index % torch.cuda.device_count(), for setup()
    too, which may set another. run_inference then gets tensors there, copied once from page-locked rows, and its
    results come back by one copy. On CUDA it runs on a stream that is current meanwhile, and need not wait for it: the
    next batch is copied there, and answers back, while one computes. That needs executor="thread".
    graphs: sizes of batches for which run_inference is captured as a CUDA graph when the service starts, over items of
    example(). A batch is filled up to the next size with its last row, and the answer cut; a larger one runs without.
    run_inference is Python only while it is captured: it gives tensors of the device that depend on nothing else than
    the batch, row by row. What can't be captured fails the start, as do answers that differ from those without a graph.
    graphs_or_eager: such a size runs without a graph instead, and the log says why.

    run_inference returns an array or tensor, a dict of them (an item's answer is then an object), or a list of rows, of
    which one may be an exception. When it raises, it is called again with parts of the batch, decoded anew.
    Rows of no dimension are answered as JSON numbers and booleans. Those of one dimension or more are answered in kind:
    as lists of numbers where any array of the request came so, else as the base64 of .npy; always so where JSON has no
    number for the dtype. Override process_response to make a JSON value of a row instead.
    """

    inputs: Inputs
    outputs: Inputs | None = None
    device: str | None = None
    graphs: Sequence[int] = ()
    graphs_or_eager: bool = False

    def process_request(self, data: list[Any]) -> Any:
        """Decode items into a batch of their own, as the server decodes them into its.

        data: the items as they stand in a request's `data`.

        For your checks; the server does not call it, so it can't be overridden.
        Raises ItemError naming the first item that is not what `inputs` declare.
        """
        items = source_of(data, self.inputs)
        if isinstance(self.inputs, Tensor):
            rows = allocate(self.inputs, len(data))
            items.into(rows)
            return rows
        columns = {name: allocate(tensor, len(data)) for name, tensor in self.inputs.items()}
        items.into(list(columns.values()))
        return columns

    def process_response(self, model_output_item: Any) -> Any:
        """Override to make a JSON value of a row; as it is, the server encodes the rows of a batch together.

        model_output_item: one row of what run_inference() gave.
        """
        return model_output_item

    def example(self) -> list[Any]:
        """One item of zeros, and of empty texts."""
        if isinstance(self.inputs, Tensor):
            return [example_of(self.inputs)]
        return [{name: example_of(tensor) for name, tensor in self.inputs.items()}]

    def _have_numbers(self, items: list[Any]) -> bool:
        return source_of(items, self.inputs).has_numbers

    def _own_steps(self) -> Steps:
        refuse_declared(self)
        device = None if self.device is None else Device(self.device)
        return TensorSteps(self, answers_json(self), device=device)

    def _work_of(self, items: list[Any]) -> Any:
        return self.process_request(items), [len(items)]

    def _own_costs(self, work: Any) -> list[float]:
        return []


def answers_json(handler: TensorHandler) -> bool:
    """Whether process_response is overridden: it makes a JSON value of each row, which are else encoded together."""
    return type(handler).process_response is not TensorHandler.process_response


class Worker:
    """The process that setup() runs in; a handler may keep it, and say by it that the process had better be replaced.

    index: a stable slot, from 0. count: how many workers share the service. service: the name of the handler's own.
    why_unhealthy: what unhealthy() said last; "" where it is well. It is each service's own, and this process's: a
    copy, in another process say, has only its own log to tell.
    """

    __slots__ = ("count", "index", "service", "why_unhealthy")

    def __init__(self, index: int = 0, count: int = 1, service: str = "") -> None:
        self.index = index
        self.count = count
        self.service = service
        self.why_unhealthy = ""

    def unhealthy(self, reason: str) -> None:
        """Have /health/live answer 503 with the reason until healthy(): whoever watches it may end the process.

        reason: what is wrong, for whoever asks; the log has it once. From any thread, at any time. Requests are still
        taken, and no answer of theirs changes it. Raises ValueError for a reason that is no text, or an empty one.
        """
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"unhealthy(reason={reason!r}): expected a text that is not empty")
        was, self.why_unhealthy = self.why_unhealthy, reason
        if not was:
            self._tell("unhealthy", f"is unhealthy, says its handler: {reason}", logging.ERROR)

    def healthy(self) -> None:
        """Take back what unhealthy() said; nothing where it said nothing."""
        was, self.why_unhealthy = self.why_unhealthy, ""
        if was:
            self._tell("healthy", "is healthy again, says its handler", logging.INFO)

    def _tell(self, name: str, what: str, level: int) -> None:
        event(log, f"service_{name}", f"service {self.service!r} {what}", {"service": self.service}, level)

    def __repr__(self) -> str:
        return f"Worker(index={self.index}, count={self.count})"

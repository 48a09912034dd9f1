"""What is called: each method of GRPCInferenceService, asked of the services by the calls that wire makes, too.

A call is a request: POST, the method's path, its metadata as headers. Its message is a body, which is read once the
head was let in; its deadline is the request's; a call that ends early gives its exchange up.

Rules: no sockets. What grpc gives is a context, from which messages are read and which is told how a call ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from grpc.aio import EOF

from ..errors import RETRY_SOON, RequestError, quoted
from ..limits import Limits
from ..service import routes, v2
from ..service.exchange import Exchange
from ..service.formats import LATER, Wants
from ..service.model import retrieve
from ..service.seam import IDS, LEFT, Head, Response
from . import messages
from .arriving import Arriving
from .codes import client_of, code_of, metadata_of
from .cut import cut, length_of, name_in
from .reading import GrpcInfer, check_model, no_model
from .writing import Refusing, refused

log = logging.getLogger("virtex")

SERVICE = "/inference.GRPCInferenceService/"
MOST_SECONDS = 1e9  # of a deadline: beyond it, ns leave 64 bits
MOST_SAID = 2000  # bytes of a reason: it travels in a header, of which clients take 8 KB
# In each answer of a stream: no other follows for that request. Clients of models that may give many wait for it
FINAL: bytes = messages.InferResponse(parameters={"triton_final_response": {"bool_param": True}}).SerializeToString()
REFUSING = Wants(LATER, Refusing())


class Calls:
    """The methods, for the services of one app. servers: these, by name. taken: how many infer requests there were.

    limits: of its messages. access: writes a line for each call; None: nobody reads it.
    """

    def __init__(self, app: Any, limits: Limits) -> None:
        self.servers: dict[str, Any] = {server.name: server for server in getattr(app, "servers", (app,))}
        self._only = None if hasattr(app, "servers") else app
        self._pipelined = limits.pipelined
        self._clock: Callable[[], int] = next(iter(self.servers.values())).options.clock
        self.arriving = Arriving(limits)
        self._met: dict[str, tuple[Any, Wants]] = {}  # the admission of each service that was asked, and its formats
        self._reading: set[asyncio.Task[None]] = set()  # of streams
        self.taken = 0
        self.access: Any = None

    def drain(self) -> None:
        """No stream is read any further; what was read is answered."""
        for task in self._reading:
            task.cancel()

    # ---- infer

    async def infer(self, _: Any, context: Any) -> bytes:
        """ModelInfer."""
        begun, head = self._clock(), self._head("ModelInfer", context)
        exchange: Any = None
        try:
            answer: Any = self._refusal(head) if self._only is None else self._opened(self._only, head, begun)
            if answer is None or type(answer) is Exchange:
                exchange = answer
                if exchange is not None:
                    exchange.await_rest(exchange.begun)
                try:
                    # No name keeps the message alive
                    answer = self._asked(head, await self.arriving.message(context), exchange)
                except RequestError as error:
                    answer = refused(error) if exchange is None else exchange.keeper.break_off(exchange, error)
                if type(answer) is Exchange:
                    exchange = answer
                    answer = await exchange
        except BaseException:
            if exchange is not None:
                exchange.cancel(LEFT)
            raise
        return await self._end(answer, exchange, head, begun, context)

    def _asked(self, head: Head, message: Any, exchange: Any) -> Any:
        """A message is all there: its answer, or the exchange that will have it. exchange: of its head, if any."""
        if message is EOF:
            message = b""
        if exchange is None:
            try:
                name = name_in(message)
            except RequestError as error:
                return refused(error)
            server = self.servers.get(name)
            if server is None:
                return refused(no_model(name, "", list(self.servers)))
            exchange = self._opened(server, head, self._clock())
            if type(exchange) is not Exchange:
                return exchange
        try:
            answer = exchange.complete(message)
        except RequestError as error:
            answer = exchange.keeper.break_off(exchange, error)
        if type(answer) is not Exchange:
            answer.request_id = exchange.name()  # that of the log
        return answer

    def _opened(self, server: Any, head: Head, now: int) -> Any:
        """A service has the head of a request: its refusal, or the exchange."""
        self.taken += 1
        met = self._met.get(server.name)
        if met is None:
            server.begin()
            admission = server.model.admission
            met = self._met[server.name] = admission, Wants(GrpcInfer(admission), REFUSING.writes)
        head.peer, head.wants = met[0].peer(head.peer), met[1]
        return server.open(head, now)

    # ---- a stream of them

    async def stream(self, _: Any, context: Any) -> None:
        """ModelStreamInfer: an answer for each request, in order. One that is refused does not end the stream."""
        begun, head, sent = self._clock(), self._head("ModelStreamInfer", context), 0
        refusal = self._refusal(head)
        if refusal is not None:
            await self._end(refusal, None, head, begun, context)
        asked: asyncio.Queue[Any] = asyncio.Queue()
        room = asyncio.Semaphore(self._pipelined)
        reading = asyncio.get_running_loop().create_task(self._read(context, asked, room))
        reading.add_done_callback(retrieve)
        self._reading.add(reading)
        answer: Any = None
        try:
            while (next_ := await asked.get()) is not None:
                answer, request_id = next_
                response = await answer if type(answer) is Exchange else answer
                answer = None
                said = _in_stream(response, request_id)
                sent += len(said)
                await context.write(said)
                room.release()
        finally:
            self._reading.discard(reading)
            reading.cancel()
            while not asked.empty():
                _give_up(asked.get_nowait())
            _give_up((answer, b""))
        error = _why_over(reading)
        over = Response(200, (), []) if error is None else refused(error)
        await self._end(over, None, head, begun, context, sent)

    async def _read(self, context: Any, asked: asyncio.Queue[Any], room: asyncio.Semaphore) -> None:
        """Put what the stream asks where it waits for its turn to be answered."""
        try:
            await room.acquire()
            message = await self.arriving.message(context)
            while message is not EOF:
                head = self._head("ModelStreamInfer", context)
                asked.put_nowait((self._asked(head, message, None), _id_of(message)))
                message = None  # the exchange lets it go when it is done with it
                await room.acquire()
                message = await context.read()
        finally:
            asked.put_nowait(None)

    # ---- what is told

    async def live(self, _: Any, context: Any) -> bytes:
        """ServerLive: open to everybody."""
        return await self._health("Live", context)

    async def ready(self, _: Any, context: Any) -> bytes:
        """ServerReady: open to everybody."""
        return await self._health("Ready", context)

    async def _health(self, what: str, context: Any) -> bytes:
        begun, head, servers = self._clock(), self._head(f"Server{what}", context), self.servers.values()
        for server in servers:
            server.begin()
        said = messages.State(holds=all(holds(server, v2.HEALTH + what.lower()) for server in servers))
        return await self._end(Response(200, (), [_dumped(said)]), None, head, begun, context)

    async def server(self, _: Any, context: Any) -> bytes:
        """ServerMetadata."""
        begun, head = self._clock(), self._head("ServerMetadata", context)
        said = messages.ServerMetadata(**orjson.loads(v2.server_metadata()))
        answer = self._refusal(head) or Response(200, (), [_dumped(said)])
        return await self._end(answer, None, head, begun, context)

    async def model_ready(self, _: Any, context: Any) -> bytes:
        """ModelReady: false for a model that there is not, as Triton has it."""

        def tell(server: Any) -> Any:
            return messages.State(holds=holds(server, v2.HEALTH + "ready"))

        return await self._of_model("ModelReady", context, tell, messages.State())

    async def model(self, _: Any, context: Any) -> bytes:
        """ModelMetadata."""

        def tell(server: Any) -> Any:
            return messages.ModelMetadata(**orjson.loads(_said_at(server, v2.MODELS + server.name)))

        return await self._of_model("ModelMetadata", context, tell, None)

    async def _of_model(self, method: str, context: Any, tell: Callable[[Any], Any], unknown: Any) -> bytes:
        """What is told of the model that a message names. unknown: of one that there is not; None: it is refused."""
        begun, head = self._clock(), self._head(method, context)
        answer = self._refusal(head)
        if answer is None:
            try:
                message = await self.arriving.message(context)
                answer = self._told(head, b"" if message is EOF else message, tell, unknown)
            except RequestError as error:
                answer = refused(error)
        return await self._end(answer, None, head, begun, context)

    def _told(self, head: Head, message: bytes, tell: Callable[[Any], Any], unknown: Any) -> Response:
        try:
            asked = messages.ModelName.FromString(message)
        except (DecodeError, UnicodeDecodeError) as error:
            return refused(RequestError(400, f"expected the name of a model: {quoted(error)}"))
        try:
            check_model(asked.name, asked.version, list(self.servers))
        except RequestError as error:
            return refused(error) if unknown is None else Response(200, (), [_dumped(unknown)])
        server = self.servers[asked.name]
        admission, now = server.model.admission, server.options.clock()
        head.wants = REFUSING
        try:
            if self._only is None:
                server.check_admits(head)
            return admission.answer(Response(200, (), [_dumped(tell(server))]), head, now)  # type: ignore[no-any-return]
        except RequestError as error:
            return admission.refuse(error, head, now)  # type: ignore[no-any-return]

    async def refuse(self, path: str, error: RequestError, context: Any) -> None:
        """A call of what is none of the methods."""
        begun, head = self._clock(), self._head(path, context, "")
        await self._end(refused(error), None, head, begun, context)

    # ---- heads and ends

    def _head(self, method: str, context: Any, service: str = SERVICE) -> Head:
        """A call, as the head of a request; its peer is the client's address, until a service knows it."""
        headers = [
            (name.encode(), value if type(value) is bytes else value.encode("latin-1", "replace"))
            for name, value in context.invocation_metadata()
        ]
        host, _, port = context.peer().rpartition(":")
        head = Head("POST", service + method, headers, None, (host, port) if port.isdigit() else None)
        left = context.time_remaining()
        if left is not None:
            head.patience = max(1, int(min(left, MOST_SECONDS) * 1e9))
        return head

    async def _end(
        self, response: Response, exchange: Exchange | None, head: Head, begun: int, context: Any, sent: int = 0
    ) -> bytes:
        """Tell how a call ends: gives its message, or raises what ends it without one. sent: bytes, ahead of it."""
        request_id = b"" if exchange is None else exchange.request_id
        request_id = request_id or response.request_id or head.request_id or IDS.next()
        said = response.buffers[0] if len(response.buffers) == 1 else b"".join(response.buffers)
        code = code_of(response.status)
        if self.access is not None:
            client, size = client_of(context.peer()), sent + (response.status == 200) * len(said)
            self.access.of_call(client, head, code.value[0], size, self._clock() - begun, request_id, exchange)
        if response.status == 200:
            context.set_trailing_metadata((("x-request-id", request_id.decode()),))
            return said
        await context.abort(code, said[:MOST_SAID].decode(errors="ignore"), metadata_of(response, request_id))
        raise AssertionError("abort() raises")

    def _refusal(self, head: Head) -> Response | None:
        """The refusal of a call ahead of its message: where none of the services lets it in."""
        first: Any = None
        for server in self.servers.values():
            server.begin()
            try:
                server.check_admits(head)
                return None
            except RequestError as error:
                first = first or (server, error)
        server, refusal = first
        head.wants = REFUSING
        return server.model.admission.refuse(refusal, head, server.options.clock())  # type: ignore[no-any-return]


def _said_at(server: Any, path: str) -> bytes:
    """What a service says to GET. Raises RequestError."""
    said: bytes = routes.answer(Head("GET", path, [], 0, None), server.model).buffers[0]
    return said


def holds(server: Any, path: str) -> bool:
    """Whether a path of health is answered, and not refused."""
    try:
        return bool(_said_at(server, path))
    except RequestError:
        return False


def _why_over(reading: asyncio.Task[None]) -> RequestError | None:
    """Why a stream is read no further; None where its client has ended it."""
    if reading.cancelled():
        return RequestError(503, "the server is stopping", RETRY_SOON)
    error = reading.exception()
    if error is None or isinstance(error, RequestError):
        return error
    log.error("a stream of gRPC could not be read", exc_info=error)
    return RequestError(500, "the stream could not be read")


def _give_up(asked: Any) -> None:
    """Nobody waits for that answer any more. asked: of a stream's queue."""
    if asked is not None and type(asked[0]) is Exchange:
        asked[0].cancel(LEFT)


def _dumped(message: Any) -> bytes:
    said: bytes = message.SerializeToString()
    return said


def _id_of(message: bytes) -> str:
    """The id of a request; "" for what is not as cut() takes it."""
    try:
        found = cut(message)
    except RequestError:
        return ""
    return "" if found is None else found.id.decode(errors="replace")


def _in_stream(response: Response, request_id: str) -> bytes:
    """An answer as one of a stream. request_id: of what it answers, which is told where that is refused."""
    if response.status == 200:
        return b"".join((b"\x12", length_of(response.size + len(FINAL)), *response.buffers, FINAL))
    error = f"{code_of(response.status).name}: {b''.join(response.buffers).decode()}"
    refusal = messages.InferResponse(id=request_id)
    refusal.MergeFromString(FINAL)
    return _dumped(messages.StreamResponse(error_message=error, infer_response=refusal))

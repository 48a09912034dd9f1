"""Server and http_server(): one service, as a program holds it and as whoever serves it calls it.

    Server.open(head, now) -> Response | Exchange    at the end of the headers: refuse, or take what follows
    Exchange.write(data)                             the body, in pieces,
    Exchange.buffer(n), Exchange.charge(n)           or read into its place
    Exchange.complete() -> Response | Exchange       the body is all there: answer, or admit
    Exchange.cancel(reason)                          nobody waits for the answer any more
    Server.leave(peer)                               the connection is gone

wire uses these calls directly; service/asgi_app.py makes them of ASGI's. Not compiled on purpose: a coroutine function
of Cython is taken for ASGI 2.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from .batch.company import Peer
from .errors import RequestError
from .handler import RequestHandler, Worker
from .limits import Limits
from .metrics import board
from .observer import Observer
from .service import asgi_app, routes, v2
from .service.authorize import Authorize, guard_of
from .service.bodies import Bodies
from .service.cors import Cors
from .service.exchange import Exchange
from .service.model import READY, Model
from .service.options import Options, prom_of
from .service.register import REGISTER
from .service.seam import Head, Response, Service
from .service.submission import check_submitted, submission

log = logging.getLogger("virtex")

OWN = ("body", "values", "answer_seconds")  # limits that are a service's own, where several share the others
LEFT_ALONE = (
    "service %r starts with its first request, for nobody passed it a lifespan: setup() gets worker.index 0 of 1 in "
    "each process, /health/ready stays 200 while the server stops, and teardown() is not called (docs/fastapi.md)"
)


class Server(Service):
    """A service: one handler behind a bare ASGI 3 callable. Made by http_server(), which documents the arguments.

    It has one life, a Model, in each process and on each loop where it is used: gunicorn may fork after http_server().
    """

    budget: Bodies

    def __init__(
        self,
        name: str,
        handler: RequestHandler | Callable[[], RequestHandler],
        *,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        self.options = Options(name=name, handler=handler, **options)
        super().__init__(self.options.limits, Bodies(self.options.limits.max_bytes))
        # Process
        self.name = name
        self.max_batch_size: int = self.options.max_batch_size
        self.max_time_on_queue: float = self.options.max_time_on_queue
        self._clock = self.options.clock
        self._guard = guard_of(api_key, self.options.authorize)
        self.has_key = self._guard is not None and self._guard.has_key  # requests have to bear one
        self._cors = None if self.options.cors is None else Cors(self.options.cors)
        self._cells = board.cells(name)
        self.is_shared = False  # it is one of Services
        self._worker: Worker | None = None  # what setup() gets, once somebody sees to its life
        # Loop
        self._model: Model | None = None  # the latest life
        self._shell: asgi_app.Shell
        REGISTER.add(self)
        if "gunicorn.arbiter" in sys.modules and "virtex.worker" not in sys.modules:  # nobody has said -k
            from .workers import wrong

            wrong.check()

    @property
    def model(self) -> Model:
        """The latest life: its handler, queue and state, for who tests or observes. Raises RuntimeError ahead of it."""
        if self._model is None:
            raise RuntimeError(f"service {self.name!r} has not begun")
        return self._model

    @property
    def max_queue_size(self) -> int:
        """Items that may wait at most; once the handler is there, no more than its rows find room for."""
        return self.options.queue if self._model is None else self._model.max_queue_size

    # ---- life

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Where it lives; None where it does not, in this process."""
        model = self._living()
        return None if model is None else model.loop

    @property
    def is_hosted(self) -> bool:
        """Whether its index is known, and somebody sees to its life: VirtexWorker, or serve() of what holds it."""
        return self._worker is not None

    def meet(self, worker: Worker | None) -> None:
        """Called by who serves an application that holds it, and sees to its life. worker: what setup() is to get."""
        self._worker = worker or Worker()

    def begin(self) -> asyncio.Task[None]:
        """Begin, where nobody has; until it is ready, requests wait. Gives the task of its start, which may raise."""
        return self._begun(is_lazy=True).starting

    async def startup(self, worker: Worker | None = None) -> None:
        """Make the handler, run its setup() and the warm-up; returns when requests can be answered.

        With executor="thread" they run on the thread of the handler; else here, and a plain setup() holds the loop.
        worker: whose index and count setup() is told; by default as it was told before. Raises what the constructor or
        setup() raised, HandlerError for a warm-up that failed. Calling it again waits for the first call.
        """
        await asyncio.shield(self.start(worker))

    def start(self, worker: Worker | None = None) -> asyncio.Task[None]:
        """Begin, as startup() does, without waiting. Gives the task of its start, which may raise.

        worker: what setup() gets; by default what it was told before.
        """
        self._worker = worker or self._worker
        return self._begun(is_lazy=False).starting

    def drain(self) -> None:
        """Be unready from now on and cut batches without waiting; requests are still answered."""
        model = self._living()
        if model is not None:
            model.drain()

    async def shutdown(self) -> None:
        """Refuse new requests, answer those that were taken, then run the handler's teardown() where setup() ran.

        Calling it again waits for the first call.
        """
        model = self._living()
        if model is not None:
            await model.shutdown()

    def _living(self) -> Model | None:
        model = self._model
        return model if model is not None and model.lives else None

    def _begun(self, is_lazy: bool) -> Model:
        """The life of this process and loop, which begins now if there is none."""
        model = self._living()
        if model is None:
            worker = self._worker or Worker()
            self.budget.count_for((os.getpid(), asyncio.get_running_loop()), worker.count)
            if is_lazy and not self.is_hosted:
                log.warning(LEFT_ALONE, self.name, extra={"event": "unhosted", "service": self.name})
            # The key's answer to the same head is the same one; that of the user's function may change.
            asked = self.options.authorize is not None or type(self).open is not Server.open
            model = self._model = Model(self.options, self.budget, self._cells, worker, is_lazy, asked)
            model.admission.cors = self._cors
            self._shell = asgi_app.Shell(model.admission, self._clock)
        elif model.loop is not asyncio.get_running_loop():
            raise RuntimeError(f"service {self.name!r} already runs on another event loop; make one app per loop")
        return model

    # ---- one of several

    def share(self, limits: Limits, budget: Bodies) -> None:
        """Be one of Services: they see to its life, and have one budget and these limits, but for its OWN.

        limits: of all of them. budget: what it is charged to, for what its clients make it hold.
        """
        self.limits = replace(limits, **{name: getattr(self.limits, name) for name in OWN})
        self.options = replace(self.options, limits=self.limits)
        self.budget, self.is_shared = budget, True
        REGISTER.remove(self)

    def check_admits(self, head: Head) -> None:
        """Raise RequestError where the key or authorize does not let a request in. head: it, ahead of its body."""
        if self._guard is not None:
            self._guard.check(head, self.model.batcher.tracebacks)

    # ---- from within a program

    async def submit(
        self, items: list[Any], *, parameters: dict[str, Any] | None = None, timeout: float | None = None
    ) -> list[Any]:
        """Have items computed in the batches of everyone's, without HTTP; gives what process_response() returned.

        items: as in a message's data, which Python has as objects; for declared inputs, or data: np.ndarray, arrays
        too. parameters: what a Request has by that name, beside the method SUBMIT, the path "" and no headers. timeout:
        seconds until RequestError (504); limits.answer_seconds at most.

        On the event loop of the service, once it has started. Gives one answer for each item, in order: what is nested
        in it is as JSON has it, lists for tuples; where a TensorHandler has no process_response() of its own, an
        array, a dict of them by name, or a scalar of NumPy, none of which is written to any more. Cancelled, it frees
        the places of its items in the queue. authorize is not asked.

        Raises ItemError with the index of an item that was refused, HandlerError with the cause where a method raised,
        RequestError (503, 504) as a client is told; RuntimeError ahead of startup(), and on another loop.
        TypeError, ValueError: arguments that are not as said here.
        """
        check_submitted(items, parameters, timeout)
        model = self._living()
        if model is None:
            raise RuntimeError(f"service {self.name!r} has not started: await startup(), or submit() once it is served")
        model.check_submits()
        asked = submission(model.admission, items, parameters, timeout)
        over = asked.wait()
        if over is not None:
            try:
                await over
            finally:
                asked.end()
        return asked.outcome()

    def run(self, host: str = "127.0.0.1", port: int = 8000, workers: int = 1, **settings: Any) -> NoReturn:
        """Serve it: `python server.py` becomes gunicorn, with VirtexWorker. It does not return.

        Each worker runs the script afresh, under the name __virtex_main__, and takes the service of this name: one
        that is made below `if __name__ == "__main__":` is not there then. SIGHUP has new workers run it anew.

        host: a name or an address to listen on. port: there. workers: how many processes. settings: gunicorn's, by
        their names (docs/gunicorn.md); they win over gunicorn.conf.py and GUNICORN_CMD_ARGS.

        Raises TypeError for a setting that there is not, ValueError for a value that it can't have, RuntimeError where
        no script runs: in a notebook, under pytest, within an event loop, while a module is imported.
        """
        from .workers import starting

        starting.run(self, host, port, workers, settings)

    # ---- the seam

    def join(self, connection: Any) -> Peer:
        """A new connection: what the heads that come on it are to have as their peer. connection: its public side."""
        self._cells.connections(1)
        return Peer()

    def open(self, head: Head, now: int) -> Response | Exchange:
        """Refuse a request at the end of its headers, answer it if it has no body to wait for, or take it.

        head: the request so far. now: the clock, in nanoseconds.

        A connection that sends the same head again asks the exchange's gate at once, while that is_open.
        """
        model = self._model
        if model is None or model.state is not READY or not model.loop.is_running():  # it has ended: begin on this one
            model = self._begun(is_lazy=True)
        admission = model.admission
        cors = self._cors
        try:
            if cors is not None and (allowed := cors.preflight(head)) is not None:
                return admission.answer(allowed, head, now)
            if self._guard is not None and not routes.is_open(head, self.options.status_page):
                self._guard.check(head, model.batcher.tracebacks)
            if head.wants is None and not routes.is_message(head):
                answer = routes.answer(head, model)
                return admission.answer(answer if cors is None else cors.marked(answer, head), head, now)
            if model.state is not READY:
                model.check_takes()
        except RequestError as error:
            return admission.refuse(error, head, now)
        return admission.open(head, now)

    def leave(self, peer: Peer) -> None:
        """A connection is gone, and its exchanges are cancelled: nobody waits for it any more. peer: join() made it."""
        self._cells.connections(-1)
        model = self._living()
        if model is not None:
            model.batcher.company.leaves(peer)
            model.batcher.wake()

    def refuse(self, error: RequestError, head: Head | None = None) -> Response:
        """The answer to what came and was no request, or broke off. head: of the request, where one was read.

        error: what was wrong with it.
        """
        self._cells.refused(error.status)
        answer = v2.refusal(error) if head is not None and v2.is_v2(head.path) else super().refuse(error)
        if (model := self._living()) is not None:
            answer.request_id = model.admission.turn_away(error, head)
        return answer if self._cors is None else self._cors.marked(answer, head)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Be an ASGI 3 application: for http and lifespan. A websocket's handshake is ended.

        scope: what the server knows of the request. receive: gives its messages. send: takes ours. Raises RuntimeError
        for a scope of another type.
        """
        if scope["type"] != "http":
            await asgi_app.other_scope(self, scope["type"], receive, send)
            return
        model = self._model
        if model is None or model.state is not READY or model.loop is not asyncio.get_running_loop():
            self._begun(is_lazy=True)
        await self._shell.respond(self, scope, receive, send)


def http_server(
    name: str,
    handler: RequestHandler | Callable[[], RequestHandler],
    max_batch_size: int = 512,
    max_time_on_queue: float = 0.005,
    prom_host: str = "127.0.0.1",
    prom_port: int = 9090,
    prom_mode: str = "off",
    prom_interval: float = 0.01,
    *,
    prom_push_interval: float | None = None,
    prom_legacy_names: bool = False,
    prom_delete_group: bool = False,
    max_queue_size: int | None = None,
    max_batch_cost: float | None = None,
    executor: str = "inline",
    limits: Limits | None = None,
    observer: Observer | Sequence[Observer] | None = None,
    watchdog: float | None = None,
    authorize: Authorize | None = None,
    status_page: bool = True,
    log: str | None = None,
    cors: Sequence[str] | None = None,
    api_key: str | None = None,
    warmup: bool | Sequence[int] = (),
    unhealthy_after: int | None = None,
    isolate_errors: bool = True,
) -> Server:
    """Make a service of a handler: a bare ASGI 3 callable.

    name: of the service. handler: a RequestHandler, its class or a factory; the latter two are called in each worker.
    max_batch_size: items that run_inference gets at most. max_time_on_queue: seconds that an item waits for company at
    most; 0: never. max_queue_size: from so many waiting items on, 503; default 4 x max_batch_size or 1024, whichever is
    more, for declared inputs no more than fits into half of limits.max_bytes. max_batch_cost: what the items of a batch
    cost at most, by the handler's cost(); an item that costs more runs alone.
    executor: "inline" runs the handler on the event loop, "thread" on a thread of its own; async methods run as
    coroutines on the loop. limits: of protocol and queue. observer: is told what happens, or each of several.
    watchdog: seconds until a batch that does not come back makes /health/live 503; for "thread" and async methods.
    isolate_errors: whether a batch that run_inference raises for runs again in parts, so that the requests whose items
    it is not about are answered; False: it fails whole, for a model that may not see the same items twice.
    authorize: gets the head of every request but those for /health/ and the status page, before its body is read;
    returns True or None to let it in, False for 401, or the status to refuse with (403, 429). It must return at once.
    status_page: whether a browser's GET / is answered by a page that shows how the service does; else it is JSON, as
    for everyone. The page holds nothing of the service: what it shows it fetches, and authorize is asked for that.
    log: "json" makes what the process logs lines of JSON, "text" does not; None: as VIRTEX_LOG says in the environment.
    Handlers that you configure yourself are left as they are.
    cors: origins whose pages may read the answers, as browsers name them ("https://example.com"), or ["*"]: every
    one's. Their preflights are answered ahead of authorize; cookies are never sent along.
    prom_mode: "scrape": http://prom_host:prom_port/metrics answers for all workers, and so does /metrics of the service
    itself; "push": they are pushed to the Pushgateway at prom_host:prom_port; "off": neither. prom_host: a host name,
    with or without http://. prom_port: from 1 to 65535. prom_interval: seconds between two pushes at least.
    prom_push_interval: its older name. prom_legacy_names: the names of Virtex 0.1 are there too. prom_delete_group:
    when the service stops, what it has pushed is deleted.
    api_key: what the same requests have to bear, as `Authorization: Bearer KEY`, else 401: signs of ASCII without
    spaces. None: the variable VIRTEX_API_KEY of the environment, if there is one. With authorize, both have to let a
    request in.
    warmup: sizes of batches of example() that run ahead of the first request; True: of 1 and max_batch_size.
    unhealthy_after: so many batches of several clients, in a row, for which all runs raised, make /health/live 503.

    Raises ValueError for an argument that is not as said here.
    """
    interval = prom_interval if prom_push_interval is None else prom_push_interval
    prom = prom_of(prom_host, prom_port, prom_mode, interval, prom_legacy_names, prom_delete_group)
    return Server(
        name,
        handler,
        max_batch_size=max_batch_size,
        max_time_on_queue=max_time_on_queue,
        max_queue_size=max_queue_size,
        max_batch_cost=max_batch_cost,
        executor=executor,
        status_page=status_page,
        limits=Limits() if limits is None else limits,
        observer=observer,
        watchdog=watchdog,
        authorize=authorize,
        log=log,
        cors=cors,
        prom=prom,
        api_key=api_key,
        warmup=warmup,
        unhealthy_after=unhealthy_after,
        isolate_errors=isolate_errors,
    )

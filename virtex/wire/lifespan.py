"""The lifespan protocol of an ASGI application: its startup() and shutdown(), each once.

Rules: knows the application, and nothing of its requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

log = logging.getLogger("virtex")

Message = MutableMapping[str, Any]
SPEC_VERSION = "2.4"  # send() raises OSError once the client has left


class Lifespan:
    """The lifespan of one application.

    state: what it keeps for its requests, in place. mode: "auto"; "on": an application without lifespan is an error;
    "off": it is not asked for one.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], state: dict[str, Any], mode: str = "auto") -> None:
        self._app = app
        self._state = state
        self._mode = mode
        self._task: asyncio.Task[None] | None = None
        self._raised: BaseException | None = None
        self._is_up = False
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()

    async def startup(self) -> None:
        """Returns when the application is ready, or has no lifespan. Raises RuntimeError when its startup failed."""
        if self._mode == "off":
            return
        self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            answer = await self._ask("lifespan.startup")
        except asyncio.CancelledError:
            self._task.cancel()  # or it would be asked to shut down what never was up
            raise
        if answer is None and self._mode == "on":
            raise RuntimeError(f"expected the application to have a lifespan, but it raised {self._raised!r}")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            raise RuntimeError(f"the application did not start: {answer.get('message') or 'it gave no reason'}")
        self._is_up = answer is not None

    async def shutdown(self) -> None:
        """Tell the application to end, and wait until it has; nothing where it has no lifespan."""
        if self._task is None or self._task.done():
            return
        try:
            answer = await self._ask("lifespan.shutdown")
        finally:
            self._task.cancel()
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            log.error("the application did not shut down cleanly: %s", answer.get("message") or "it gave no reason")
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": SPEC_VERSION}, "state": self._state}
        try:
            await self._app(scope, self._inbox.get, self._answers.put)
        except (Exception, SystemExit) as error:
            self._raised = error
            if self._is_up:
                log.exception("the application's lifespan raised")
            else:  # the specification lets an application that has none raise here; it is served without
                log.debug("the application has no lifespan: %r", error)

    async def _ask(self, kind: str) -> Message | None:
        assert self._task is not None
        await self._inbox.put({"type": kind})
        answer = asyncio.ensure_future(self._answers.get())
        try:
            await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()

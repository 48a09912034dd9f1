"""How a service's metrics leave its process: where they are read, or that they are pushed; made when its life begins.

Rules: knows when, not how: scrape, push and exposition do it. They load prometheus_client, so they are loaded here when
somebody asks for metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .board import here
from .totals import workers

if TYPE_CHECKING:
    from .push import Push

log = logging.getLogger("virtex")


class Prom(NamedTuple):
    """The prom_* arguments, as http_server() documents them. host: bare; scheme: what stood ahead of it."""

    host: str = "127.0.0.1"
    port: int = 9090
    mode: str = "off"
    interval: float = 0.01
    legacy_names: bool = False
    delete_group: bool = False
    scheme: str = "http"


OFF = Prom()
END_SECONDS = 10.0  # that the end of a service waits for its last push: a name server or a gateway may take for ever


class Export:
    """The metrics of one service, from the beginning of its life. Raises OSError where prom_port can't be had."""

    def __init__(self, name: str, prom: Prom) -> None:
        from . import exposition, scrape

        self.name = name
        self.prom = prom
        self._exposition = exposition
        self._registry = exposition.registry_of(exposition.Ours({name: prom.legacy_names}))
        self._address = (prom.host, prom.port, name, prom.legacy_names)
        self._scrape = scrape
        self._push: Push | None = None
        if prom.mode == "scrape":
            scrape.join(*self._address)

    def begin(self, workers_asked: int) -> None:
        """The service is ready. workers_asked: how many processes it is to have."""
        if not self._exposition.is_shared() and max(workers_asked, len(workers(here()))) > 1:
            theirs = sorted(family.name for family in self._exposition.Theirs().collect())
            if theirs:
                log.warning(
                    "the handler's own metrics (%s) are those of one worker of several, whichever is asked; "
                    "set PROMETHEUS_MULTIPROC_DIR to an empty directory to have them added up",
                    ", ".join(theirs),
                )
        if self.prom.mode == "push":
            self._push = self._pusher()
            self._push.start()

    def _pusher(self) -> Push:
        from .push import Push

        name, prom = self.name, self.prom
        host = f"[{prom.host}]" if ":" in prom.host else prom.host
        url = f"{prom.scheme}://{host}:{prom.port}"
        return Push(url, prom.interval, {name: prom.legacy_names}, prom.delete_group)

    async def wait_ended(self) -> None:
        """end(), on a thread that is waited for END_SECONDS at most, should a gateway hang, and not at the exit."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def end() -> None:
            self.end()
            with contextlib.suppress(RuntimeError):  # the loop is closed: it did not wait for so long
                loop.call_soon_threadsafe(over.set)

        threading.Thread(target=end, name=f"virtex metrics of {self.name}", daemon=True).start()
        try:
            await asyncio.wait_for(over.wait(), END_SECONDS)
        except TimeoutError:
            log.warning("the last metrics of %r are not waited for: they take more than %g s", self.name, END_SECONDS)

    def end(self) -> None:
        """The service has answered its last request, or did not start. Blocks for as long as a last push takes."""
        if self.prom.mode == "scrape":
            self._scrape.leave(*self._address)
        elif self._push is not None:
            self._push.stop()

    def render(self, accept: str) -> tuple[str, bytes]:
        """The content type and the text, for all workers. accept: the header of that name, "" where there is none."""
        return self._exposition.render(self._registry, accept)


def render_all(exports: Sequence[Export], accept: str) -> tuple[str, bytes]:
    """Those of several services, at least one, as Export.render() gives one's."""
    from . import exposition

    names = {export.name: export.prom.legacy_names for export in exports}
    return exposition.render(exposition.registry_of(exposition.Ours(names)), accept)

"""How a service ends: what waits is cut at once, what was taken is answered, all else refused; teardown() is last."""

import asyncio
import threading

import pytest
from kit.asks import ask_asgi, ask_direct
from kit.servers import eventually
from kit.services import BODY, Echo

from virtex import Services, http_server
from virtex.batch.company import Peer
from virtex.errors import RequestError
from virtex.service.seam import Head

FOREVER = 3600  # seconds that an item may wait for company


class Ends(Echo):
    """Says in which order its batches and its end came; a batch waits until it is let through."""

    def __init__(self):
        self.calls = []
        self.go = threading.Event()
        self.go.set()

    def run_inference(self, batch):
        self.calls.append(list(batch))
        assert self.go.wait(10)
        return batch

    def teardown(self):
        self.calls.append("teardown")


class AsyncEnds(Ends):
    async def run_inference(self, batch):
        self.calls.append(list(batch))
        while not self.go.is_set():
            await asyncio.sleep(0)
        return batch


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def ways(*names):
    known = {"inline": (Ends, "inline"), "thread": (Ends, "thread"), "async": (AsyncEnds, "inline")}
    return pytest.mark.parametrize(("kind", "executor"), [known[name] for name in names], ids=names)


async def begun(kind, executor, **options):
    handler = kind()
    app = http_server("ends", handler, executor=executor, **options)
    await app.startup()
    return handler, app


@ways("inline", "thread", "async")
@pytest.mark.parametrize("end", ["drain", "shutdown"])
def test_what_waits_for_company_is_cut_at_once(kind, executor, end, ask):
    async def main():
        handler, app = await begun(kind, executor, max_time_on_queue=FOREVER)
        first, second = (Peer(), Peer()) if ask is ask_direct else (("10.0.0.1", 1), ("10.0.0.1", 2))
        await ask(app, BODY, peer=first)  # it is expected again
        asked = asyncio.ensure_future(ask(app, b'{"data":[2]}', peer=second))
        for _ in range(20):
            await asyncio.sleep(0)
        assert handler.calls == [[1]], "it waits"
        ending = [] if end == "drain" else [asyncio.ensure_future(app.shutdown())]
        app.drain()
        answer = await asyncio.wait_for(asked, 5)
        await asyncio.gather(*ending, app.shutdown())
        return answer.status, handler.calls

    assert asyncio.run(main()) == (200, [[1], [2], "teardown"])


@ways("thread", "async")
def test_what_waits_behind_a_long_batch_is_answered_and_who_comes_later_is_refused(kind, executor, ask):
    async def main():
        handler, app = await begun(kind, executor, max_batch_size=2)
        handler.go.clear()
        asked = [asyncio.ensure_future(ask(app, b'{"data":[%d]}' % i)) for i in range(5)]
        await eventually(lambda: handler.calls)
        ending = [asyncio.ensure_future(app.shutdown()) for _ in range(2)]
        await asyncio.sleep(0)
        late = await ask(app, BODY)
        with pytest.raises(RequestError, match="the service has shut down"):
            await app.submit([1])
        assert not any(one.done() for one in (*asked, *ending))
        handler.go.set()
        await asyncio.wait_for(asyncio.gather(*ending), 5)
        return [(await one).json["data"] for one in asked], late, handler.calls

    answers, late, calls = asyncio.run(main())
    assert answers == [[0], [1], [2], [3], [4]]
    assert (late.status, late.error, late.headers[b"retry-after"]) == (503, "the service has shut down", b"1")
    assert [i for batch in calls[:-1] for i in batch] == [0, 1, 2, 3, 4] and calls[-1] == "teardown"


@ways("inline", "thread", "async")
@pytest.mark.parametrize("comes", [True, False], ids=["comes", "breaks off"])
def test_a_body_that_is_still_arriving_is_waited_for(kind, executor, comes):
    async def main():
        handler, app = await begun(kind, executor, max_time_on_queue=FOREVER)
        opened = app.open(Head("POST", "/", [], len(BODY), Peer()), app._clock())
        opened.write(BODY[:4])
        ending = asyncio.ensure_future(app.shutdown())
        await asyncio.sleep(0)
        assert (await ask_direct(app, BODY)).status == 503
        assert handler.calls == [] and not ending.done()
        status = None
        if comes:
            opened.write(BODY[4:])
            status = (await opened.complete()).status
        else:
            opened.cancel("the client left")
        await asyncio.wait_for(ending, 5)
        return status, handler.calls

    assert asyncio.run(main()) == ((200, [[1], "teardown"]) if comes else (None, ["teardown"]))


@ways("inline", "thread", "async")
def test_several_that_end_together_and_one_by_one_are_each_torn_down_once(kind, executor):
    async def main():
        handlers = kind(), kind()
        servers = [http_server(name, one, executor=executor) for name, one in zip("ab", handlers, strict=True)]
        app = Services(*servers)
        await app.startup()
        await asyncio.gather(app.shutdown(), servers[1].shutdown(), app.shutdown())
        await app.shutdown()
        return [one.calls for one in handlers]

    assert asyncio.run(main()) == [["teardown"], ["teardown"]]

"""When a service says that its process had better be replaced: batches that fail whole, and what its handler says."""

import asyncio
import copy
import pickle
import threading

import pytest
from kit.asks import ask_asgi, ask_direct
from kit.servers import eventually
from kit.services import Echo

from virtex import ItemError, Services, http_server
from virtex.batch.company import Peer
from virtex.batch.ring import Batch
from virtex.batch.steps import Laps
from virtex.handler import Worker
from virtex.service.health import Health

SAID = "batches of several clients that failed whole: {} in a row (unhealthy_after={})"


class Exchange:
    def __init__(self, client):
        self.client = client


def batch(*clients, systemic=True):
    made = Batch([(Exchange(client), 0, 1) for client in clients], None, len(clients))
    made.laps = Laps()
    made.laps.systemic = systemic
    return made


def health(most=3):
    return Health("h", Worker(), most)


def told(caplog):
    """The levels and events of what the log has of health."""
    events = ((record.levelname, getattr(record, "event", "")) for record in caplog.records)
    return [(level, event) for level, event in events if event.endswith("healthy")]


# ---- a row of batches


def test_so_many_batches_in_a_row_make_it_unhealthy_and_one_that_is_answered_makes_it_well(caplog):
    with caplog.at_level("INFO"):
        one = health(3)
        for _ in range(2):
            one.judge(batch("a", "b"), 0)
            assert one.reason == ""
        for failed in (3, 4):
            one.judge(batch("a", "b"), 0)
            assert one.reason == SAID.format(failed, 3)
        one.judge(batch("a"), 1)
        assert one.reason == ""
        one.judge(batch("a", "b"), 0)
        assert one.reason == "", "the row begins anew"
    assert told(caplog) == [("ERROR", "service_unhealthy"), ("INFO", "service_healthy")], "each once"


def test_any_request_that_is_answered_ends_a_row(caplog):
    one = health(2)
    for _ in range(5):
        one.judge(batch("a", "b"), 0)
        one.judge(batch("a", "b", "c"), 1)
    assert one.reason == "" and not told(caplog)


@pytest.mark.parametrize(
    "other",
    [batch("a", "b", systemic=False), batch("a"), batch("a", "a", "a"), batch()],
    ids=["refused items", "one request", "requests of one client", "nobody"],
)
def test_what_one_client_can_do_counts_nothing_and_ends_no_row(other):
    one = health(2)
    for _ in range(5):
        one.judge(other, 0)
    assert one.reason == ""
    one.judge(batch("a", "b"), 0)
    one.judge(other, 0)
    one.judge(batch("a", "b"), 0)
    assert one.reason == SAID.format(2, 2)


def test_a_batch_that_broke_off_says_nothing_of_the_model():
    one = health(1)
    broken = batch("a", "b")
    broken.laps = None
    one.judge(broken, 0)
    assert one.reason == ""


class Broken(Echo):
    """Fails with what it is told to, and answers while that is nothing."""

    error = None

    def setup(self, worker):
        self.worker = worker

    def run_inference(self, model_input):
        if self.error is not None:
            raise self.error
        return model_input


class AsyncBroken(Broken):
    async def run_inference(self, model_input):
        await asyncio.sleep(0)
        return Broken.run_inference(self, model_input)


async def live(app, path="/health/live"):
    answer = await ask_direct(app, method="GET", path=path)
    return answer.status, answer.json.get("error")


async def ask_all(ask, app, *peers, count=1):
    """Requests of these clients, in one batch."""
    body = b'{"data":[%b]}' % b",".join([b"1"] * count)
    return [answer.status for answer in await asyncio.gather(*(ask(app, body, peer=peer) for peer in peers))]


DIRECT = (ask_direct, Peer(), Peer())
ASGI = (ask_asgi, ("10.0.0.1", 1), ("10.0.0.1", 2))


@pytest.mark.parametrize(("ask", "a", "b"), [DIRECT, ASGI], ids=["direct", "asgi"])
@pytest.mark.parametrize(
    ("kind", "executor"),
    [(Broken, "inline"), (Broken, "thread"), (AsyncBroken, "inline")],
    ids=["inline", "thread", "async"],
)
def test_a_model_that_fails_for_everybody_is_not_live_until_it_answers(kind, executor, ask, a, b):
    async def main():
        handler = kind()
        app = http_server("broken", handler, executor=executor, unhealthy_after=2, max_time_on_queue=0.05)
        await app.startup()
        found = []
        handler.error = RuntimeError("the device is lost")
        for peers in ((a, b), (a,), (a, a), (a, b)):  # only the first and the last are of several clients
            found.append(await live(app))
            assert set(await ask_all(ask, app, *peers)) == {500}
        found.append(await live(app))
        found.append(await live(app, "/health/ready"))
        handler.error = None
        assert await ask_all(ask, app, a) == [200]
        found.append(await live(app))
        await app.shutdown()
        return found

    says = f"not live: {SAID.format(2, 2)}"
    assert asyncio.run(main()) == [(200, None)] * 4 + [(503, says), (200, None), (200, None)]


def test_without_the_option_failures_are_counted_nowhere():
    async def main():
        handler = Broken()
        app = http_server("broken", handler)
        await app.startup()
        handler.error = RuntimeError("the device is lost")
        for _ in range(5):
            await ask_all(ask_direct, app, Peer(), Peer())
        found = await live(app)
        await app.shutdown()
        return found, app.model.batcher.judge

    assert asyncio.run(main()) == ((200, None), None)


@pytest.mark.parametrize("error", [ItemError("too long", 0), ItemError("too long")], ids=["indexed", "of all"])
def test_poisoned_requests_do_not_restart_it_from_afar(error):
    async def main():
        handler = Broken()
        app = http_server("poisoned", handler, unhealthy_after=1)
        await app.startup()
        handler.error = error
        for _ in range(3):
            await ask_all(ask_direct, app, Peer(), Peer(), count=4)
        found = await live(app)
        await app.shutdown()
        return found

    assert asyncio.run(main()) == (200, None)


def test_each_submit_and_each_client_that_has_no_address_is_one_of_its_own():
    async def main():
        handler = Broken()
        app = http_server("submitted", handler, unhealthy_after=2)
        await app.startup()
        handler.error = RuntimeError("the device is lost")
        await asyncio.gather(*(app.submit([i]) for i in range(2)), return_exceptions=True)
        await ask_all(ask_asgi, app, None, None)
        found = await live(app)
        await app.shutdown()
        return found[0]

    assert asyncio.run(main()) == 503


@pytest.mark.parametrize("most", [0, -1, True, 1.5, "3"])
def test_a_number_of_failures_that_is_none_is_refused(most):
    with pytest.raises(ValueError, match="unhealthy_after=.*: expected a whole number from 1"):
        http_server("odd", Echo(), unhealthy_after=most)


# ---- what the handler says


def test_a_handler_says_from_any_thread_that_it_is_unhealthy_and_that_it_is_well(caplog):
    async def main():
        handler = Broken()
        app = http_server("says", handler)
        await app.startup()
        found = [await live(app)]
        for say in (
            lambda: handler.worker.unhealthy("the licence has run out"),
            lambda: handler.worker.unhealthy("the disk is full\n"),
            handler.worker.healthy,
            handler.worker.healthy,
        ):
            thread = threading.Thread(target=say)
            thread.start()
            thread.join()
            found += [await live(app), await ask_all(ask_direct, app, Peer())]
        await app.shutdown()
        return found

    with caplog.at_level("INFO"):
        well, *found = asyncio.run(main())
    unwell = [(503, "not live: the licence has run out"), [200], (503, "not live: the disk is full\n"), [200]]
    assert well == (200, None) and found == [*unwell, (200, None), [200], (200, None), [200]]
    assert told(caplog) == [("ERROR", "service_unhealthy"), ("INFO", "service_healthy")], "each once"
    assert "service 'says' is unhealthy, says its handler: the licence has run out" in caplog.text


def test_what_the_handler_says_is_not_taken_back_by_an_answer_nor_a_row_of_failures_by_its_word():
    one = health(1)
    one.worker.unhealthy("no disk")
    one.judge(batch("a"), 1)
    assert one.reason == "no disk"
    one.judge(batch("a", "b"), 0)
    one.worker.healthy()
    assert one.reason == SAID.format(1, 1)


def test_it_may_be_said_in_setup_already_and_is_over_with_the_life_that_it_was_said_in():
    class Unwell(Broken):
        async def setup(self, worker):
            self.worker = worker
            worker.unhealthy("loading from the slow disk")
            await self.go.wait()

    async def main():
        handler = Unwell()
        handler.go = asyncio.Event()
        app = http_server("early", handler)
        starting = app.start()
        await eventually(lambda: hasattr(handler, "worker"))
        found = [await live(app)]
        handler.go.set()
        await starting
        found.append(await live(app))
        await app.shutdown()
        return found, handler.worker

    app_found, worker = asyncio.run(main())
    assert app_found == [(503, "not live: loading from the slow disk")] * 2
    worker.healthy()
    worker.unhealthy("after the end")  # nobody listens, and nothing breaks


def test_each_of_several_services_says_it_for_itself_and_all_of_them_name_it():
    async def main():
        handlers = Broken(), Broken()
        app = Services(*(http_server(name, one) for name, one in zip("ab", handlers, strict=True)))
        worker = Worker(3, 4)
        await app.startup(worker)
        assert [(one.worker.index, one.worker.count, one.worker.service) for one in handlers] == [
            (3, 4, "a"),
            (3, 4, "b"),
        ]
        handlers[1].worker.unhealthy("no memory")
        found = [await live(app, path) for path in ("/health/live", "/a/health/live", "/b/health/live")]
        handlers[1].worker.healthy()
        found.append(await live(app))
        await app.shutdown()
        return found

    said = "not live: no memory"
    assert asyncio.run(main()) == [(503, f"service 'b': {said}"), (200, None), (503, said), (200, None)]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_only_the_log_to_tell(copied, caplog):
    one = health().worker
    other = copied(one)
    other.unhealthy("in another process")
    assert (other.index, other.count, other.service, one.why_unhealthy) == (0, 1, "h", "")
    assert "service 'h' is unhealthy, says its handler: in another process" in caplog.text


def test_who_hosts_it_need_not_give_a_worker_of_ours():
    class Gunicorns:
        index, count = 2, 3

    assert repr(Health("h", Gunicorns(), None).worker) == "Worker(index=2, count=3)"


@pytest.mark.parametrize("reason", ["", None, 7, b"bytes"])
def test_a_reason_that_is_no_text_is_an_error(reason):
    with pytest.raises(ValueError, match="expected a text that is not empty"):
        Worker().unhealthy(reason)

import pytest
from kit.asks import Echo, ask_asgi, ask_direct, run
from kit.names import shown
from test_batcher import Rig

from virtex import Limits, Observer, http_server
from virtex.observer import as_one


@pytest.fixture
def rig(loop):
    return Rig(loop)


class Told(Observer):
    def __init__(self):
        self.heard = []

    def request_done(self, status, items, seconds):
        self.heard.append((status, items))

    def batch_done(self, batch):
        self.heard.append((batch.size, batch.ok))

    def dropped(self, reason, items):
        self.heard.append((reason, items))


class Raises(Observer):
    def __init__(self, error):
        self.error = error

    def request_done(self, status, items, seconds):
        raise self.error

    def batch_done(self, batch):
        raise self.error


def test_an_observer_that_raises_costs_nobody_an_answer(rig, caplog):
    rig.observer.batch_done = lambda batch: 1 / 0
    ticket = rig.send("a")
    rig.loop.settle()
    rig.executor.finish()
    assert ticket.answers
    assert "the observer raised" in caplog.text


@pytest.mark.parametrize("error", [ZeroDivisionError("one"), SystemExit(3)], ids=repr)
def test_of_several_observers_each_is_told_whatever_the_others_raise(error, caplog):
    first, last = Told(), Told()
    app = http_server("echo", Echo(), observer=[first, Raises(error), Raises(error), last])
    (answer,) = run(app, ask_direct(app, b'{"data":["a","b"]}'))
    assert answer.json == {"data": ["a", "b"], "error": None}
    assert first.heard == last.heard == [(200, 2), (2, True)]
    assert caplog.text.count("several observers raised") >= 1


def test_a_body_that_is_refused_as_it_comes_is_told_as_every_refusal():
    class Lost(Told):
        def request_lost(self, reason, status, items, request_id):
            self.heard.append((reason, status, items))

    told = Lost()
    app = http_server("echo", Echo(), limits=Limits(body=1000), observer=told)
    (answer,) = run(app, ask_asgi(app, [b" " * 900, b" " * 900], headers=[(b"content-length", b"1")]))
    assert answer.status == 413 and told.heard == [("size", 413, 0), (413, 0)]


def test_a_single_one_that_raises_is_logged_as_itself(caplog):
    app = http_server("echo", Echo(), observer=(Told(), Raises(ZeroDivisionError("itself"))))
    run(app, ask_direct(app, b'{"data":["a"]}'))
    assert "ZeroDivisionError: itself" in caplog.text and "observers raised (" not in caplog.text


def test_of_what_is_dropped_each_is_told():
    several = [Told(), Told()]
    as_one(several).dropped("the client left", 2)
    assert [one.heard for one in several] == [[("the client left", 2)]] * 2


def test_one_observer_is_told_directly_and_none_costs_nothing():
    one = Told()
    assert as_one([one]) is one
    assert as_one([]) is None
    assert http_server("echo", Echo(), observer=one).options.told is one


@pytest.mark.parametrize("wrong", [Told, "ab", 0, [Told], [Told(), None], {1}], ids=shown)
def test_what_is_no_observer_is_refused(wrong):
    with pytest.raises(ValueError, match="expected an Observer, a sequence of them, or None"):
        http_server("echo", Echo(), observer=wrong)

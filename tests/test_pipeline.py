"""The order of copies and runs, over a device that works late, and finds what nothing keeps in order."""

import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from kit.streams import HOST, Race, SimDevice, SimTensor

from virtex import Tensor
from virtex.batch import pipeline as pipelines
from virtex.batch.pipeline import DEPTH, Pipeline
from virtex.errors import HandlerError

MOST, WIDTH = 4, 4
WAYS = (
    *("fresh", "static", "its input", "on another stream", "by name", "as rows", "in host memory", "without dimension"),
    *("keeps its batch", "raises", "fails on the device", "a kept answer"),
)


class Boom(Exception):
    pass


class Life:
    """A pipeline in use: batches of three slabs, of which two are out at most, and a model of many ways."""

    def __init__(self, deaf=(), choose=None, declared=True):
        self.device = SimDevice(deaf, choose)
        outputs = Tensor("float32", (WIDTH,)) if declared else None
        self.pipeline = Pipeline(self.device, Tensor("float32", (WIDTH,)), MOST, outputs)
        self.side = self.device.stream()
        with self.device.on(self.pipeline._compute):
            self.static = self.device.output(MOST * WIDTH)
        self.pipeline.prepare()
        self.slabs = [np.zeros((MOST, WIDTH), np.float32) for _ in range(3)]
        self.memories = [self.device.host_rows(slab) for slab in self.slabs]
        self.waiting = [[] for _ in range(3)]  # by stage: load, run, wait
        self.kept = []  # a tensor or an array, and what it is to say for ever
        self.answered = 0

    @property
    def out(self):
        return sum(map(len, self.waiting))

    def cut(self, count, way, start):
        """The host fills the rows of a slab that is free, and a batch is cut."""
        number = self.slabs_free.pop()
        self.device.host(writes=[self.memories[number]])
        self.slabs[number][:count] = np.arange(count * WIDTH, dtype=np.float32).reshape(count, WIDTH) + start
        self.waiting[0].append([number, self.slabs[number][:count], way, None, self.slabs[number][:count] * 2])

    @property
    def slabs_free(self):
        used = {batch[0] for stage in self.waiting for batch in stage}
        return [i for i in range(3) if i not in used]

    def load(self):
        batch = self.waiting[0].pop(0)
        batch[3] = self.pipeline.load(batch[1])
        self.waiting[1].append(batch)

    def run(self):
        batch = self.waiting[1].pop(0)
        try:
            self.pipeline.run(batch[3], lambda given: self.model(given, batch[2]))
        except Boom:
            return
        self.waiting[2].append(batch)

    def wait(self):
        _, _, way, berth, expected = self.waiting[2].pop(0)
        if way == "fails on the device":
            self.device.fails.append(Boom())
            with pytest.raises(Boom):
                self.pipeline.wait(berth)
            return
        answers = self.pipeline.wait(berth)
        if way == "by name":
            (answers,) = answers.values()
        elif way == "as rows":
            answers = np.stack(answers)
        elif way == "without dimension":
            expected = expected[:, 0]
        if way not in ("in host memory", "as rows"):
            self.device.host(reads=[self.device.memory_of(answers)])
        assert answers.shape == expected.shape and (answers == expected).all()
        if way == "a kept answer":
            self.kept.append((answers, expected))
        self.answered += 1

    def model(self, given, way):
        count = len(given.array)
        if way == "in host memory":
            self.device.synchronize()
            return given.array * 2
        if way == "its input":
            self._ask(given, given)
            return given
        if way == "raises":
            self._use(self.device.output(MOST * WIDTH), given)
            raise Boom
        if way == "on another stream":
            with self.device.on(self.side):
                self._use(self.device.output(MOST * WIDTH))
            event = self.device.event()
            event.record(self.device.current())
            self.side.wait_event(event)
            self.device.present = self.side
        if way == "keeps its batch":
            self.kept.append((given, given.array))
        whole = self.static if way == "static" else self.device.output(MOST * WIDTH)
        array = whole.array[: count * WIDTH].reshape(count, WIDTH)
        made = SimTensor(whole.owner, array)
        made.whole = whole  # its memory is free when both are gone
        self._ask(given, made)
        self._use(self.device.output(MOST * WIDTH))  # memory that is free at once, and in use for long
        if way == "by name":
            return {"y": made}
        if way == "as rows":
            return [self._part(made, array[i]) for i in range(count)]
        return self._part(made, array[:, 0]) if way == "without dimension" else made

    def _part(self, made, array):
        part = SimTensor(made.owner, array)
        part.whole = made
        return part

    def _ask(self, given, made):
        self.device.current().ask([given.owner], [made.owner], lambda: np.multiply(given.array, 2, out=made.array))

    def _use(self, tensor, *read):
        array = tensor.array
        self.device.current().ask([each.owner for each in read], [tensor.owner], lambda: array.fill(-1))

    def check(self):
        """Everything is over, and what somebody has kept says what it said."""
        while any(self.waiting):
            stage = next(i for i in (2, 1, 0) if self.waiting[i])
            (self.load, self.run, self.wait)[stage]()
        self.device.synchronize()
        for kept, expected in self.kept:
            if not isinstance(kept, SimTensor):
                assert (kept == expected).all()
        assert len(self.pipeline._free) == DEPTH


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.choices = random.Random(0)
        self.life = Life(choose=lambda n: self.choices.randrange(n))

    @precondition(lambda self: self.life.out < DEPTH)
    @rule(count=st.integers(1, MOST), way=st.sampled_from(WAYS), start=st.integers(1, 1000))
    def cut(self, count, way, start):
        self.life.cut(count, way, start)

    @precondition(lambda self: self.life.waiting[0])
    @rule()
    def load(self):
        self.life.load()

    @precondition(lambda self: self.life.waiting[1])
    @rule()
    def run_model(self):
        self.life.run()

    @precondition(lambda self: self.life.waiting[2])
    @rule()
    def wait(self):
        self.life.wait()

    @rule(stream=st.integers(0, 4))
    def step(self, stream):
        self.choices.seed(stream)
        self.life.device.step()

    def teardown(self):
        self.life.check()


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestMachine = Machine.TestCase


def walk(seed, ways=WAYS, steps=150, **kw):
    """Some steps of a life, in an order of chance."""
    chance = random.Random(seed)
    life = Life(choose=chance.randrange, **kw)
    for _ in range(steps):
        may = [life.device.step]
        if life.out < DEPTH:
            may += [lambda: life.cut(chance.randint(1, MOST), chance.choice(ways), chance.randint(1, 1000))] * 2
        may += [f for f, waiting in zip((life.load, life.run, life.wait), life.waiting, strict=True) if waiting]
        chance.choice(may)()
    life.check()
    return life


@pytest.mark.parametrize("declared", [True, False])
def test_batches_are_answered_with_what_the_model_gave_whatever_the_device_does_first(declared):
    assert sum(walk(seed, declared=declared).answered for seed in range(20)) > 200


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_a_model_is_in_order(way):
    assert walk(1, [way]).answered or way in ("raises", "fails on the device")


@pytest.mark.parametrize(
    ("deaf", "way"),
    [
        (("compute", "waits"), "fresh"),  # for the rows
        (("compute", "waits"), "on another stream"),  # for what the model left on it
        (("out", "waits"), "fresh"),  # for what the model gave
        (("in", "waits"), "keeps its batch"),  # for memory that is new
        (HOST, "fresh"),  # for answers, and until rows are used again
        (HOST, "raises"),
    ],
    ids=str,
)
def test_each_wait_is_needed(deaf, way):
    with pytest.raises((Race, AssertionError)):
        for seed in range(10):
            walk(seed, [way], deaf=[deaf])


@pytest.mark.parametrize("event", ["loaded", "computed", "fetched"])
def test_each_event_is_needed(event, monkeypatch):
    class Forgets(pipelines.Berth):
        def __init__(self, device, inputs):
            super().__init__(device, inputs)
            getattr(self, event).record = lambda stream: None

    monkeypatch.setattr(pipelines, "Berth", Forgets)
    with pytest.raises((Race, AssertionError)):
        for seed in range(10):
            walk(seed, ["fresh", "raises"])


class LetsGo(Pipeline):
    """Of what the model gave as soon as the copies of it are asked for."""

    def run(self, berth, infer):
        super().run(berth, infer)
        berth.given = None


class NoCopy(Pipeline):
    """Copies straight from what the model gave: the next run may write there."""

    def _keep(self, berth, given):
        size = super()._keep(berth, given)
        berth.away = [given.owner]
        return size


class Reuses(Pipeline):
    """Memory to which somebody else refers."""

    def _make_rows(self, berth):
        if berth.rows[0] is None:
            super()._make_rows(berth)

    def _make_room(self, berth, size):
        if berth.size < size:
            super()._make_room(berth, size)


@pytest.mark.parametrize(
    ("broken", "way"),
    [
        (LetsGo, "on another stream"),
        (NoCopy, "static"),
        (Reuses, "a kept answer"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_rule_of_memory_is_needed(broken, way, monkeypatch):
    monkeypatch.setitem(globals(), "Pipeline", broken)
    with pytest.raises((Race, AssertionError)):
        for seed in range(20):
            walk(seed, [way])


def test_a_tensor_that_the_handler_keeps_is_its_own():
    life = Life()
    seen = []
    for start in (10, 20, 30):
        life.cut(2, "keeps its batch", start)
        for stage in (life.load, life.run, life.wait):
            stage()
        seen.append(life.kept[-1][0])
    assert len({id(tensor.owner) for tensor in seen}) == 3
    life.device.synchronize()
    assert [tensor.array[0, 0] for tensor in seen] == [10, 20, 30]


def test_memory_that_nobody_keeps_is_used_again():
    life = Life()
    used = set()
    for start in range(8):
        life.cut(4, "fresh", start)
        for stage in (life.load, life.run, life.wait):
            stage()
        used |= {id(berth.rows[0]) for berth in life.pipeline._berths} | {id(s.here[0]) for s in life.pipeline._berths}
    assert len(used) == 2 * DEPTH


def test_one_batch_loads_while_another_computes_and_neither_waits_for_the_other():
    life = Life()
    for start in (10, 20):
        life.cut(4, "fresh", start)
        life.load()
    life.run()
    copy_in, compute, out = (stream.work for stream in life.device.streams[1:4])
    while copy_in and copy_in[0]():
        copy_in.popleft()
    assert not copy_in and compute and out  # both batches are on the device, and nothing has run
    life.check()


def test_all_of_a_batch_comes_back_in_one_copy():
    life = Life()
    life.cut(4, "as rows", 1)
    life.load()
    life.run()
    out = life.device.streams[3]
    assert len(out.work) == 3  # a wait, a copy, an event
    life.check()


def test_a_row_that_is_a_tuple_of_tensors_is_refused_by_name():
    life = Life()
    pair = (life.static, life.static)
    with pytest.raises(HandlerError, match=r"returned a list of which row 1 is a tuple"):
        life.pipeline.infer(life.slabs[0][:2], lambda batch: [life.static, pair])


def test_memory_of_declared_answers_is_made_ahead_and_counted():
    life = Life()
    assert life.pipeline.host_bytes == DEPTH * 64  # 4 rows of 4 float32, on lines of 64 bytes
    assert life.pipeline.device_bytes == DEPTH * (64 + MOST * WIDTH * 4)
    assert Life(declared=False).pipeline.host_bytes == 0


class HostTensor(SimTensor):
    """In host memory: form() knows nothing of it."""

    def copy(self):
        return self.array.copy()


def test_a_tensor_in_host_memory_that_is_still_on_its_way_is_waited_for(monkeypatch):
    life = Life()
    monkeypatch.setattr(life.device, "form", lambda value: None)
    here = HostTensor(life.static.owner, np.zeros((2, WIDTH), np.float32))

    def model(given):
        life.device.current().ask([given.owner], [], lambda: np.copyto(here.array, given.array * 2))
        return here

    life.cut(2, "fresh", 1)
    life.load()
    _, _, _, berth, expected = life.waiting[1].pop()
    life.pipeline.run(berth, model)
    here.array[:] = -1  # the model may write there again
    assert (life.pipeline.wait(berth) == expected).all()


def test_a_batch_behind_one_that_had_to_be_waited_for_has_not():
    life = Life()
    for made, is_foreign in ((iter, True), (lambda rows: rows, False)):
        for _ in range(DEPTH):
            life.pipeline.infer(life.slabs[0][:2], lambda batch, made=made: made([life.static, life.static]))
        assert [berth.is_foreign for berth in life.pipeline._berths] == [is_foreign] * DEPTH


def test_a_copy_that_can_not_be_asked_for_costs_no_berth_and_leaves_nothing_under_way(monkeypatch):
    life = Life()
    send = life.device.send

    def fails(array, rows):
        send(array, rows)
        raise Boom

    monkeypatch.setattr(life.device, "send", fails)
    for _ in range(DEPTH + 1):
        with pytest.raises(Boom):
            life.pipeline.load(life.slabs[0][:2])
    assert len(life.pipeline._free) == DEPTH and not any(stream.work for stream in life.device.streams)
    life.device.host(writes=[life.memories[0]])  # the rows may be used again

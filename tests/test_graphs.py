"""Graphs of a few sizes: recorded and replayed by calling again over the same memory. Real ones: tests/test_gpu.py."""

import re

import ml_dtypes
import numpy as np
import orjson
import pytest
from kit import here, needs
from kit.here import Doubles, Here, asked, body, items, rows

from virtex import Limits, Tensor, TensorHandler
from virtex.batch.graphs import NotCaptured, _difference, _distance, _told

torch = needs.library("torch")
device = here.device


class Captured(Doubles):
    graphs = (1, 4, 8)
    sizes: list[int]

    def setup(self, worker):
        self.sizes = []

    def run_inference(self, batch):
        self.sizes.append(len(batch))
        return batch * 2


def test_batches_are_answered_by_the_next_larger_graph(device):
    handler = Captured()
    sent = [items(1 + seed % 5, seed) for seed in range(60)]
    answers = asked(handler, *(body(*one) for one in sent), max_batch_size=8, max_queue_size=2048)
    for one, answer in zip(sent, answers, strict=True):
        assert (rows(answer) == np.stack(one) * 2).all()
    assert set(handler.sizes) == {1, 4, 8}  # by replays, too
    assert device[0].replays > 20


def test_the_largest_is_captured_first_and_each_runs_without_a_graph_before(device):
    handler = Captured()
    asked(handler, max_batch_size=8)
    # three runs, the capture, its replay, and one more to compare with
    assert handler.sizes == [8] * 6 + [4] * 6 + [1] * 6


def test_a_batch_is_filled_up_with_its_last_row(device):
    seen = []

    class Looks(Captured):
        def run_inference(self, batch):
            seen.append(batch.clone())
            return batch * 2

    (one,) = items(1)
    Looks.graphs = (4,)
    asked(Looks(), body(one), max_batch_size=4)
    assert (seen[-1].numpy() == np.stack([one] * 4)).all()


def test_a_batch_that_is_larger_than_all_graphs_runs_without(device):
    class Small(Captured):
        graphs = (2,)

    handler = Small()
    (answer,) = asked(handler, body(*items(7)), max_batch_size=8)
    assert (rows(answer) == np.stack(items(7)) * 2).all() and handler.sizes[-1] == 7


def test_names_and_lists_of_rows_are_cut(device):
    class Named(TensorHandler):
        inputs = {"x": Tensor("float32", (3,))}
        device = "cuda"
        graphs = (4,)

        def run_inference(self, batch):
            return {"y": batch["x"] * 2, "sum": batch["x"].sum(1)}

    (answer,) = asked(Named(), orjson.dumps({"data": [{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]}), max_batch_size=4)
    assert answer.json["data"] == [{"y": [2, 4, 6], "sum": 6}, {"y": [8, 10, 12], "sum": 15}]


class Differs(Captured):
    """Answers otherwise when it is replayed."""

    calls = 0

    def run_inference(self, batch):
        self.calls += 1
        return batch * 2 + (self.calls > 5) * 0.5


def test_a_graph_that_answers_otherwise_fails_the_start_and_says_how_much(device):
    with pytest.raises(
        NotCaptured, match=r"a batch of 8 is answered otherwise by its graph: differs by up to 0.5; exp"
    ):
        asked(Differs(), max_batch_size=8)


class Refuses(Captured):
    def run_inference(self, batch):
        if len(batch) == 4 and self.is_capturing():
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nSearch for ...")
        return batch * 2


@pytest.fixture
def refuses(device, monkeypatch):
    """A handler that raises while a batch of 4 is captured."""
    captures = []
    capture = Here.capture

    def capturing(self, call):
        captures.append(1)
        try:
            return capture(self, call)
        finally:
            captures.pop()

    monkeypatch.setattr(Here, "capture", capturing)
    Refuses.is_capturing = lambda self: bool(captures)
    return Refuses


def test_what_can_not_be_captured_fails_the_start_and_names_the_line(refuses):
    expected = (
        r"a batch of 4 can't be captured: RuntimeError: CUDA error: operation not permitted when stream is capturing"
    )
    with pytest.raises(NotCaptured, match=expected + r', at test_graphs.py:\d+: raise RuntimeError\("CUDA error') as e:
        asked(refuses(), max_batch_size=8)
    assert isinstance(e.value.__cause__, RuntimeError)


def test_it_falls_back_where_that_is_asked_for(refuses, caplog):
    sizes = []

    class Falls(refuses):
        graphs_or_eager = True

        def run_inference(self, batch):
            sizes.append(len(batch))
            return super().run_inference(batch)

    sent = [items(3, seed) for seed in range(4)]
    for one, answer in zip(sent, asked(Falls(), *(body(*one) for one in sent), max_batch_size=8), strict=True):
        assert (rows(answer) == np.stack(one) * 2).all()
    assert "a batch of 4 can't be captured" in caplog.text and "such batches run without" in caplog.text
    (said,) = [record for record in caplog.records if getattr(record, "event", "") == "not_captured"]
    assert said.items == 4 and set(sizes[-2:]) == {8}  # the next larger graph has them


def test_it_does_not_fall_back_on_a_device_that_is_gone(device):
    class Breaks(Captured):
        graphs_or_eager = True

        def run_inference(self, batch):
            if len(self.sizes) == 3:  # the capture
                device[0].gone = RuntimeError("CUDA error: device-side assert triggered")
                raise device[0].gone
            return super().run_inference(batch)

    with pytest.raises(NotCaptured, match="a batch of 8 can't be captured: RuntimeError: CUDA error: device-side"):
        asked(Breaks(), max_batch_size=8)


def test_a_graph_gives_tensors_only(device):
    class Leaves(Captured):
        def run_inference(self, batch):
            return (batch * 2).numpy()

    with pytest.raises(NotCaptured, match="run_inference gave a ndarray; a graph gives tensors on its device only"):
        asked(Leaves(), max_batch_size=8)


@pytest.mark.parametrize(
    ("graphs", "error", "expected"),
    [
        ((0,), ValueError, r"graphs=\(0,\): expected whole numbers from 1 to max_batch_size=8"),
        ((1, 9), ValueError, "from 1 to max_batch_size=8"),
        ((1.5,), ValueError, "expected whole numbers"),
    ],
)
def test_sizes_that_no_batch_has_are_refused(device, graphs, error, expected):
    class Wrong(Captured):
        pass

    Wrong.graphs = graphs
    with pytest.raises(error, match=expected):
        asked(Wrong(), max_batch_size=8)


@pytest.mark.parametrize("name", [None, "cpu"])
def test_graphs_need_a_cuda_device(name):
    class Nowhere(Captured):
        device = name

    with pytest.raises(ValueError, match=rf"graphs=\(1, 4, 8\) needs a CUDA device; device={name!r} is none"):
        asked(Nowhere(), max_batch_size=8)


def test_a_graph_knows_nobody_who_asks(device):
    class Asks(Captured):
        def run_inference(self, batch, requests):
            return batch * 2

    with pytest.raises(TypeError, match="a graph knows nobody who asks"):
        asked(Asks(), max_batch_size=8)


@pytest.mark.parametrize(
    ("came", "expected", "says"),
    [
        ([1.0, 2.0], [1.0, 2.0], ""),
        ([1.0, np.nan], [1.0, np.nan], ""),
        ([1.0, np.inf], [1.0, np.inf], ""),
        ([1.0, 2.0001], [1.0, 2.0], ""),
        ([1.0, 2.1], [1.0, 2.0], "differs by up to 0.1; expected no more than 0.0002"),
        ([1.0, np.nan], [1.0, 2.0], "differs by up to nan"),
        ([1.0, np.inf], [1.0, 2.0], "differs by up to inf"),
        ([1.0], [np.inf], "differs by up to inf"),
        ([1.00001, np.nan], [1.0, np.nan], ""),
        ([1.5, np.inf], [1.0, np.inf], "differs by up to 0.5; expected no more than 0.0001"),
        ([5e-5], [0.0], ""),
        ([1000.05, 2.0], [1000.0, 2.0], ""),
    ],
)
def test_answers_may_differ_by_rounding(came, expected, says):
    text = _distance(np.array(came, np.float32), np.array(expected, np.float32))
    assert text.startswith(says) and bool(text) == bool(says)


@pytest.mark.parametrize(
    ("dtype", "came", "says"),
    [
        ("float16", 1.005, ""),
        ("float16", 1.05, "differs by up to 0.0498; expected no more than 0.01"),
        ("float64", 1.00001, "differs by up to 1e-05; expected no more than 1e-07"),
        ("complex64", 1 + 0.1j, "differs by up to 0.1; expected no more than 0.0001"),
        ("complex64", 1 + 1e-5j, ""),
        ("complex128", 1 + 1e-5j, "differs by up to 1e-05; expected no more than 1e-07"),
        (ml_dtypes.float8_e5m2, 1.25, "differs by up to 0.25; expected no more than 0.1"),
        (ml_dtypes.float8_e4m3fn, 0.9375, ""),
        ("bool", False, "differs in 1 of 1 values"),
    ],
)
def test_by_how_much_answers_may_differ_is_for_their_dtype(dtype, came, says):
    text = _distance(np.array([came], dtype), np.array([1], dtype))
    assert text.startswith(says) and bool(text) == bool(says)


@pytest.mark.parametrize(
    ("came", "expected", "says"),
    [
        ({"a": np.ones(2)}, {"b": np.ones(2)}, "by other names"),
        (np.ones(2), {"b": np.ones(2)}, "by other names"),
        ({"a": np.ones(2), "b": np.zeros(1)}, {"a": np.ones(2), "b": np.ones(1)}, "'b' differs by up to 1; expected"),
        (np.ones((2, 3)), np.ones(2), "float64 (2, 3) in place of float64 (2,)"),
        (np.ones(2, "f4"), np.ones(2), "float32 (2,) in place of float64 (2,)"),
    ],
)
def test_what_differs_is_named(came, expected, says):
    assert _difference(came, expected).startswith(says)


def test_what_went_wrong_first_is_told():
    try:
        try:
            raise ValueError("the first\nand more")
        except ValueError:
            raise RuntimeError("the capture was invalidated") from None
    except RuntimeError as error:
        assert _told(error).startswith("ValueError: the first, at test_graphs.py:")


@pytest.mark.parametrize("fails", [lambda: np.linalg.inv(np.zeros((2, 2))), lambda: Limits(body=0)])
def test_the_line_that_is_told_is_neither_a_librarys_nor_ours(fails):
    with pytest.raises(ValueError) as caught:
        fails()
    assert re.search(r", at test_graphs.py:\d+: @pytest.mark.parametrize", _told(caught.value))


def test_nothing_but_rows_of_the_example_is_ever_computed(device, monkeypatch):
    buffers, buffer = [], Here.buffer
    monkeypatch.setattr(Here, "buffer", lambda self, size: (buffers.append(size), buffer(self, size))[1])

    class Checks(Captured):
        outputs = Tensor("float32", (3,))

        def example(self):
            return [[1, 2, 3]]

        def run_inference(self, batch):
            assert (batch == torch.tensor([1, 2, 3])).all()  # an index that there is not would cost the device
            return list(batch * 2)

    (answer,) = asked(Checks(), body(np.float32([1, 2, 3])), max_batch_size=8)
    assert (rows(answer) == [[2, 4, 6]]).all()
    assert buffers.count(8 * 12) == 2 + 1  # of the berths, and what all graphs share


def test_whole_numbers_may_not_differ():
    assert _distance(np.array([1, 2]), np.array([1, 3])) == "differs in 1 of 2 values"

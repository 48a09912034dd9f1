import asyncio
import collections
import gc
import threading

import numpy as np
import orjson
import pytest
from kit.asks import ask_direct, run
from kit.names import shown
from kit.tensors import Identity, Tokens, body, served, vector

from virtex import http_server
from virtex._codec import decode_numpy
from virtex.batch.outputs import as_rows, rows_by_name, rows_of
from virtex.errors import HandlerError
from virtex.message import encode_data


class Frame:
    """Iterates over its columns, as a DataFrame does; rows are at iloc."""

    iloc = ("first row", "second row")

    def __len__(self):
        return 2

    def __iter__(self):
        return iter(["column"])


@pytest.mark.parametrize(
    ("outputs", "rows"),
    [
        ([1, 2], [1, 2]),
        (collections.deque([1, 2]), [1, 2]),
        (range(2), [0, 1]),
        ((x for x in "ab"), ["a", "b"]),
        (np.array([1.5, 2.5]), [1.5, 2.5]),
        (Frame(), ["first row", "second row"]),
    ],
    ids=shown,
)
def test_rows_iterate_along_the_zeroth_dimension(outputs, rows):
    assert rows_of(outputs, 2) == rows


def test_rows_of_an_array_are_its_subarrays():
    assert [row.tolist() for row in rows_of(np.arange(4).reshape(2, 2), 2)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([1], "returned 1 rows for 2 items"),
        ([1, 2, 3], "returned 3 rows for 2 items"),
        (np.zeros((3, 2)), "returned 3 rows for 2 items"),
        (iter([1]), "returned 1 rows for 2 items"),
        (iter(int, 1), "gave more than 2 rows for 2 items"),
        ({"a": 1, "b": 2}, "returned a dict; expected 2 rows"),
        ({1, 2}, "returned a set"),
        ("ab", "returned a str"),
        (b"ab", "returned a bytes"),
        (None, "returned a NoneType"),
        (7, "returned a int"),
        ((1, 2), "returned a tuple, which may be several results"),
        (np.float32(1), "no dimensions|returned a float32"),
        (np.array(1), "of no dimensions"),
    ],
    ids=shown,
)
def test_other_outputs_are_refused_with_what_came(outputs, says):
    with pytest.raises(HandlerError, match=says):
        rows_of(outputs, 2)


def test_an_endless_iterator_is_read_to_one_row_too_many():
    read = []
    with pytest.raises(HandlerError):
        rows_of((read.append(i) for i in iter(int, 1)), 3)
    assert len(read) == 4


def test_rows_of_no_dimension_are_numbers_and_booleans():
    class Sums(Identity):
        def run_inference(self, batch):
            return batch.sum(axis=1) if batch[0, 0] else batch.sum(axis=1) > 1

    numbers, booleans = served(Sums(), body(vector(1, 2, 3))), served(Sums(), body(vector(0, 2, 3)))
    assert numbers[0].body == b'{"data":[6.0],"error":null}'
    assert booleans[0].body == b'{"data":[true],"error":null}'


def test_process_response_gets_the_row_where_it_is_overridden():
    class Labels(Identity):
        def process_response(self, model_output_item):
            return {"label": "abc"[int(model_output_item.argmax())]}

    (answer,) = served(Labels(), body(vector(1, 2, 3), vector(9, 2, 3)))
    assert answer.json["data"] == [{"label": "c"}, {"label": "a"}]


def test_a_sequence_of_rows_will_do():
    class Lists(Identity):
        def run_inference(self, batch):
            return [row * 2 for row in batch]

    (answer,) = served(Lists(), body(vector(1, 2, 3)))
    assert decode_numpy(answer.json["data"][0]).tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (lambda batch: batch[1:], "1 rows for 2 items"),
        (lambda batch: batch[0, 0], "expected an array of 2 rows"),
        (lambda batch: "ab", "a str; expected an array of 2 rows"),
        (lambda batch: {}, "an empty dict"),
        (lambda batch: {"a": batch, "b": batch[1:]}, "'b' as 1 rows for 2 items"),
        (lambda batch: [vector(1), vector(1, 2)], "rows of different shapes"),
        (lambda batch: np.array([None, None]), "expected an array of 2 rows"),
        (lambda batch: batch.sum(axis=1) * np.nan, "item 0: run_inference gave a float that can't be sent: nan"),
    ],
)
def test_what_can_not_be_sent_is_a_500(outputs, says):
    class Odd(Identity):
        def run_inference(self, batch):
            return outputs(batch)

    (answer,) = served(Odd(), body(vector(), vector()))
    assert answer.status == 500
    assert says in answer.error


def test_declared_outputs_are_held_to():
    class Odd(Tokens):
        def run_inference(self, batch):
            return {"sum": batch["ids"].sum(axis=1).astype("f4"), "ids": batch["ids"]}

    app = http_server("tokens", Odd())
    (answer,) = run(app, ask_direct(app, orjson.dumps({"data": [{"ids": [5, 7], "mask": [True, True]}]})))
    assert answer.status == 500
    assert "'sum': 'float32 ()'" in answer.error and "declared" in answer.error


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((1, 2), "M8[25s]"), "rows that can't be sent: datetime64\\[25s\\] does not travel"),
        (np.zeros(1, "f4,i2"), "rows that can't be sent: .* no structured or void"),
        (np.zeros(1, np.longdouble), "(longdouble|float128) has no JSON form: convert it"),
        (np.ma.array([1.5], mask=[True]), "a masked array, whose mask would be lost"),
    ],
    ids=["several units", "structured", "longdouble", "masked"],
)
def test_rows_that_do_not_travel_are_an_error_that_says_which(rows, says):
    with pytest.raises(HandlerError, match=says):
        as_rows(rows, 1, None).json()
    if "can't be sent" in says:
        with pytest.raises(HandlerError, match=says):
            as_rows(rows, 1, None).npy()


@pytest.mark.parametrize("order", "<>")
def test_text_of_code_points_that_are_none_is_not_sent(order):
    rows = np.array(["ab", "c"], order + "U2")
    assert as_rows(rows, 2, None).json() == b'{"data":["ab","c"],"error":null}'
    rows.view(order + "u4")[1] = 0x110000
    with pytest.raises(HandlerError, match="code points that Unicode does not have"):
        as_rows(rows, 2, None).json()
    assert as_rows(np.zeros(0, "U2"), 0, None).json() == b'{"data":[],"error":null}'
    with pytest.raises(HandlerError, match="code points that Unicode does not have"):
        rows_of(rows, 2)
    with pytest.raises(HandlerError, match="code points that Unicode does not have"):
        encode_data([rows])


def test_parts_of_rows_join_without_aliasing():
    rows = rows_by_name({"": np.arange(6.0).reshape(3, 2)})
    joined = rows.joined([rows.part(0, 1).copy(), rows.part(1, 3)])
    assert len(joined) == 3
    rows.arrays()[""][:] = 0
    gc.collect()
    assert joined.arrays()[""].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (lambda n, call: np.zeros((n, call)), "returned rows of {'': (1,)}, then of {'': (2,)}"),
        (lambda n, call: {"ab"[call - 1]: np.zeros(n)}, "returned rows of {'a': ()}, then of {'b': ()}"),
        (lambda n, call: dict.fromkeys("ab"[:call], np.zeros(n)), "then of {'a': (), 'b': ()}, for one request"),
    ],
    ids=["shapes", "names", "more names"],
)
def test_rows_of_two_batches_that_do_not_go_together_fail_their_request_alone(outputs, says):
    class Varies(Identity):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            return outputs(len(batch), self.calls)

    both, other = served(Varies(), body(*[vector()] * 3), body(vector()), max_batch_size=2)
    assert (both.status, other.status) == (500, 200)
    assert says in both.error


def test_labels_of_different_lengths_go_together():
    class Labels(Identity):
        calls = 0

        def run_inference(self, batch):
            self.calls += 1
            return np.array(["a" * self.calls] * len(batch))

    (answer,) = served(Labels(), body(*[vector()] * 3), max_batch_size=2)
    assert answer.json["data"] == ["a", "a", "aa"]


class Reuses(Identity):
    """A model that writes all its outputs to one place; its second batch is done before the first is answered."""

    def setup(self, worker):
        self.place = np.zeros((2, 3), "float32")
        self.returned = threading.Event()

    def run_inference(self, batch):
        np.copyto(self.place[: len(batch)], batch)
        if batch[0, 0] == 2:
            self.returned.set()
        return self.place[: len(batch)]


class ReusesRows(Reuses):
    def process_response(self, row):
        return row


@pytest.mark.parametrize("handler", [Reuses, ReusesRows])
def test_a_model_that_reuses_its_outputs_changes_no_answer_that_is_not_made_yet(handler):
    async def main():
        model = handler()
        app = http_server("reuses", model, executor="thread", max_batch_size=1)
        await app.startup()
        asked = [asyncio.ensure_future(ask_direct(app, body(vector(n, n, n)))) for n in (1, 2)]
        for _ in range(5):
            await asyncio.sleep(0)  # both are cut now; the loop stands still until both have run
        model.returned.wait(5)
        answers = await asyncio.wait_for(asyncio.gather(*asked), 5)
        await app.shutdown()
        return [answer.json["data"][0] for answer in answers]

    decode = decode_numpy if handler is Reuses else np.array
    assert [decode(item).tolist() for item in asyncio.run(main())] == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_rows_of_a_request_over_two_batches_stay_as_they_were(executor):
    model_rows = [[n] * 3 for n in (1, 2, 3)]
    (answer,) = served(ReusesRows(), body(*map(np.float32, model_rows)), max_batch_size=1, executor=executor)
    assert answer.json["data"] == model_rows


def test_outputs_that_nobody_else_can_write_to_are_not_copied():
    fresh, kept = np.zeros((2, 3)), np.zeros((2, 3))
    rows = rows_by_name({"fresh": fresh, "kept": kept, "view": np.zeros((4, 3))[:2]})
    at = {name: array.ctypes.data for name, array in rows.arrays().items()}
    del fresh  # kept is still referred to from here
    same = {name: array.ctypes.data == at[name] for name, array in rows.unshared().arrays().items()}
    assert same == {"fresh": True, "kept": False, "view": False}

"""What a handler returns is its answer as of that moment, whatever it writes to the same memory afterwards."""

import asyncio
import collections

import numpy as np
import orjson
import pytest
from kit import needs
from kit.asks import ask_asgi, ask_direct, run

from virtex import RequestHandler, Tensor, TensorHandler, http_server

torch = needs.library("torch")

SIZE = 4  # of a batch


class Frame:
    """What pandas gives, as far as it matters: rows by iloc, views of the frame's memory."""

    def __init__(self, values):
        self.values = values
        self.iloc = values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(["column"])


class Model:
    """Writes every batch to one array, and what it says of each row to one dict and one list."""

    def __init__(self):
        self.out = np.zeros((SIZE, 2), "float32")
        self.filled = {}
        self.listed = [0.0, 0.0]

    def compute(self, batch):
        out = self.out[: len(batch)]
        np.copyto(out, np.asarray(batch, "float32")[:, None] + np.float32([0, 0.5]))
        return out

    def fill(self, row):
        self.filled["scores"] = row
        return self.filled

    def list(self, row):
        self.listed[:] = row.tolist()
        return self.listed


def ordered(model, row):
    return collections.OrderedDict(model.fill(row))


def boxed(model, row):
    box = np.empty(1, object)
    box[0] = row
    return box


RESPONSES = {
    "row": lambda model, row: row,
    "in a dict": lambda model, row: {"scores": row},
    "in a list": lambda model, row: [row],
    "in a tuple": lambda model, row: (row, "label"),
    "deep": lambda model, row: {"a": [{"b": (row,)}], "c": None},
    "of torch": lambda model, row: {"scores": torch.from_numpy(row).numpy()},
    "one dict": lambda model, row: model.fill(row.tolist()),
    "one flat dict": lambda model, row: model.fill(float(row[0])),
    "one dict of a view": lambda model, row: model.fill(row),
    "one list": lambda model, row: model.list(row),
    "one list in a list": lambda model, row: [model.list(row)],
    "a subclass of dict": ordered,
    "an array of objects": boxed,
}
EXECUTORS = ["inline", "thread", "async"]


def handler_of(respond, declared, is_async, outputs=lambda out: out):
    model = Model()

    class Listed(RequestHandler):
        def process_request(self, data):
            return data

        def run_inference(self, batch):
            return outputs(model.compute(batch))

        def process_response(self, row):
            return respond(model, row)

    class Declared(TensorHandler):
        inputs = Tensor("float32")
        run_inference = Listed.run_inference
        process_response = Listed.process_response

    kind = Declared if declared else Listed
    if not is_async:
        return kind()

    class Awaits(kind):
        async def run_inference(self, batch):
            await asyncio.sleep(0)
            return kind.run_inference(self, batch)

        async def process_response(self, row):
            await asyncio.sleep(0)
            return kind.process_response(self, row)

    return Awaits()


def body(items):
    return orjson.dumps({"data": items})


def expected(respond, items):
    rows = [np.float32([item, item + 0.5]) for item in items]
    model = Model()
    return [orjson.loads(orjson.dumps(_plain(respond(model, row)))) for row in rows]


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if isinstance(value, np.ndarray) else value


def check(handler, respond, executor):
    """One request over three batches, then sixteen clients whose requests share and span them."""
    named = "thread" if executor == "thread" else "inline"
    app = http_server("answers", handler, max_batch_size=SIZE, max_queue_size=1024, executor=named)

    async def client(ask, number):
        for turn in range(3):
            items = [100.0 * number + 10 * turn + k for k in range(1 + (number + turn) % 6)]
            answer = await ask(app, body(items))
            assert answer.json == {"data": expected(respond, items), "error": None}

    async def one():
        items = [float(n) for n in range(10)]
        answer = await ask_direct(app, body(items))
        assert answer.json == {"data": expected(respond, items), "error": None}

    run(app, one(), *(client((ask_direct, ask_asgi)[n % 2], n) for n in range(1, 17)))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("declared", [False, True], ids=["list", "tensor"])
@pytest.mark.parametrize("respond", RESPONSES.values(), ids=RESPONSES)
def test_no_answer_changes_when_the_model_writes_on(respond, declared, executor):
    check(handler_of(respond, declared, executor == "async"), respond, executor)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_rows_of_a_frame_are_answers_of_their_moment(executor):
    respond = RESPONSES["in a dict"]
    check(handler_of(respond, False, executor == "async", Frame), respond, executor)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_iterator_may_fill_one_array_again_for_each_row(executor):
    place = np.zeros(2, "float32")

    def one_after_another(out):
        for row in out:
            place[:] = row
            yield place

    respond = RESPONSES["in a dict"]
    check(handler_of(respond, False, executor == "async", one_after_another), respond, executor)


class Gives(RequestHandler):
    def __init__(self, *answers):
        self.answers = answers

    def process_request(self, data):
        return data

    def run_inference(self, batch):
        return [self.answers[item] for item in batch]

    def process_response(self, row):
        return row


cycle = {}
cycle["again"] = [cycle]
deep = []
for _ in range(300):
    deep = [deep]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"a": [object()]}, "gave a dict that can't be sent: "),
        (cycle, "gave a dict that can't be sent: Recursion limit"),
        (deep, "gave a list that can't be sent: Recursion limit"),
        ({"a": [float("nan")]}, "gave a dict that can't be sent: nan is no JSON number"),
        ({"a": float("inf")}, "gave a dict that can't be sent: inf is no JSON number"),
        ({1: "a"}, "gave a dict that can't be sent: Dict key must be str"),
        (torch.eye(2).to_sparse(), "gave a Tensor that can't be sent"),
    ],
    ids=["object", "cycle", "deep", "nan", "flat inf", "key", "sparse tensor"],
)
def test_what_can_not_be_sent_names_its_item_and_spares_the_other_requests(answer, says):
    app = http_server("odd", Gives("fine", answer))
    good, bad, also = run(app, *(ask_direct(app, body(items)) for items in ([0], [0, 1, 0], [0])))
    assert good.json["data"] == also.json["data"] == ["fine"]
    assert bad.status == 500
    assert bad.error.startswith("item 1: process_response " + says)


def test_what_json_has_passes_as_it_is():
    values = ["a", 1, 1.5, True, None, {"a": None}, [None, [1, "null"]], {}, []]
    app = http_server("plain", Gives(*values, (1, (2,)), np.float32(0.5), np.int64(7), np.arange(2)))
    (answer,) = run(app, ask_direct(app, body(list(range(13)))))
    assert answer.json == {"data": [*values, [1, [2]], 0.5, 7, [0, 1]], "error": None}


Named = collections.namedtuple("Named", "labels scores")
TUPLES = {
    "tuple": (lambda: (["cat", "dog"], [0.9, 0.1]), "a tuple"),
    "of rows": (lambda: ([1.0], [2.0]), "a tuple"),
    "named": (lambda: Named(["cat", "dog"], [0.9, 0.1]), "a test_aliasing.Named"),
    "max": (lambda: torch.max(torch.zeros(2, 2), dim=1), "a torch.return_types.max"),
    "topk": (lambda: torch.topk(torch.zeros(2, 2), 1), "a torch.return_types.topk"),
    "svd": (lambda: np.linalg.svd(np.zeros((2, 2))), "a "),
}


@pytest.mark.parametrize("responds", [False, True], ids=["rows", "process_response"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("outputs", "name"), TUPLES.values(), ids=TUPLES)
def test_a_tuple_is_never_taken_for_rows(outputs, name, count, responds):
    class Listed(RequestHandler):
        def process_request(self, data):
            return data

        def run_inference(self, batch):
            return outputs()

        def process_response(self, row):
            return row

    class Declared(TensorHandler):
        inputs = Tensor("float32")
        run_inference = Listed.run_inference

    class InDict(Declared):
        def run_inference(self, batch):
            return {"a": np.zeros(len(batch)), "b": outputs()}

    if responds:
        Declared.process_response = Listed.process_response
    for kind in (Listed, Declared) if responds else (Listed, Declared, InDict):
        app = http_server("tuple", kind())
        (answer,) = run(app, ask_direct(app, body([1] * count)))
        assert answer.status == 500
        assert name in answer.error and "members are the rows, return list(...)" in answer.error
        if kind is InDict:
            assert "run_inference returned 'b' as a " in answer.error


def test_rows_may_be_tuples_themselves():
    class Pairs(RequestHandler):
        def process_request(self, data):
            return data

        def run_inference(self, batch):
            return list(zip(batch, batch, strict=True))

        def process_response(self, row):
            assert type(row) is tuple
            return row

    app = http_server("pairs", Pairs())
    (answer,) = run(app, ask_direct(app, body([1, 2])))
    assert answer.json["data"] == [[1, 1], [2, 2]]

"""V2 over gRPC: each method, what it says of what is wrong, and that its requests are those of everybody else."""

import asyncio
import logging
import socket
import time
import tracemalloc
from types import SimpleNamespace

import grpc
import ml_dtypes
import numpy as np
import pytest
import uvloop
from kit import needs
from kit.asks import Echo, ask_direct
from kit.servers import eventually, free_port
from kit.v2 import infer, outputs_of, tensor

needs.library("grpc")

from kit.grpc import CONTENTS, SERVICE, Client, odd_call, request, texts  # noqa: E402
from kit.grpc import outputs_of as outputs_of_message  # noqa: E402

from virtex import ItemError, Limits, RequestHandler, Services, Tensor, TensorHandler, http_server  # noqa: E402
from virtex.rpc.calls import Calls  # noqa: E402
from virtex.rpc.contents import GROWN  # noqa: E402
from virtex.rpc.messages import (  # noqa: E402
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelName,
    ServerMetadata,
    State,
    StreamResponse,
)
from virtex.rpc.serving import GrpcServer, serve_grpc  # noqa: E402
from virtex.service.exchange import VALUE_BYTES  # noqa: E402

DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "bf16"]
ROWS = np.float32([[1, 2, 3]])


def identity(dtype="f4", **options):
    class Identity(TensorHandler):
        inputs = outputs = Tensor(dtype, (3,))

        def run_inference(self, model_input):
            return model_input

    return http_server(options.pop("name", "identity"), Identity, **options)


class Sums(TensorHandler):
    """Two inputs, two outputs, which are not declared."""

    inputs = {"a": Tensor("f4", (2, 2)), "b": Tensor("i8")}

    def run_inference(self, model_input):
        return {"s": model_input["a"].sum((1, 2)), "t": model_input["b"]}


class Upper(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        return [text.upper() for text in model_input]

    def process_response(self, item):
        return item


class Gated(TensorHandler):
    """Runs when it is let, and says how large its batches were."""

    inputs = outputs = Tensor("f4", (3,))

    def __init__(self):
        self.gate = asyncio.Event()
        self.sizes = []
        self.torn_down = False

    async def run_inference(self, model_input):
        self.sizes.append(len(model_input))
        await self.gate.wait()
        return model_input

    def teardown(self):
        self.torn_down = True


async def computing(client, handler):
    """A call whose item the model has, alone."""
    call = asyncio.create_task(client.ask(request("gated", ROWS)))
    await eventually(lambda: handler.sizes == [1])
    return call


@pytest.fixture(scope="module")
def runner():
    """grpc.aio has one poller in a process, which had better see one loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


@pytest.fixture
def run(runner):
    def run(app, main, *options):
        async def whole():
            async with await serve_grpc(app, port=0) as server:
                client = Client(server.port, *options)
                try:
                    return await asyncio.wait_for(main(client), 30)
                finally:
                    await client.close()
                    await app.shutdown()

        return runner.run(whole())

    return run


def refused(told, code, *parts):
    assert told.code == code and all(part in told.details for part in parts), told


# ---- what there is


def test_a_server_and_a_model_say_what_they_are(run):
    app = http_server("sums", Sums)

    async def main(client):
        live, ready = [await client.ask(method=f"Server{what}") for what in ("Live", "Ready")]
        assert State.FromString(live.message).holds and State.FromString(ready.message).holds
        server = ServerMetadata.FromString((await client.ask(method="ServerMetadata")).message)
        assert server.name == "virtex" and server.version
        told = await client.ask(ModelName(name="sums", version="1"), "ModelMetadata")
        model = ModelMetadata.FromString(told.message)
        assert (model.name, list(model.versions), model.platform) == ("sums", ["1"], "virtex")
        inputs = [(one.name, one.datatype, list(one.shape)) for one in model.inputs]
        assert inputs == [("a", "FP32", [-1, 2, 2]), ("b", "INT64", [-1])] and not model.outputs
        found = await client.infer(request("sums", ("b", np.arange(2)), ("a", np.ones((2, 2, 2), "f4"))))
        assert found["s"].tolist() == [4, 4] and found["t"].tolist() == [0, 1]
        learnt = ModelMetadata.FromString((await client.ask(ModelName(name="sums"), "ModelMetadata")).message)
        assert [(one.name, one.datatype) for one in learnt.outputs] == [("s", "FP32"), ("t", "INT64")]
        for name, version, holds in (("sums", "", True), ("sums", "1", True), ("sums", "2", False), ("x", "", False)):
            told = await client.ask(ModelName(name=name, version=version), "ModelReady")
            assert told.code == "OK" and State.FromString(told.message).holds is holds
        refused(await client.ask(ModelName(name="x"), "ModelMetadata"), "NOT_FOUND", "model 'x': expected sums")
        refused(await client.ask(b"\x0a\x7f", "ModelMetadata"), "INVALID_ARGUMENT", "expected the name of a model")

    run(app, main)


def test_a_method_that_there_is_not_names_those_that_there_are(run):
    async def main(client):
        refused(await client.ask(method="ModelConfig"), "UNIMPLEMENTED", "ModelConfig", "ModelInfer, ModelMetadata")
        stream = client.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.aio.AioRpcError, match="there is no"):
            await stream(iter([b""])).read()

    run(identity(), main)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_datatype_comes_as_it_went_raw_and_as_numbers(run, dtype):
    app = identity(ml_dtypes.bfloat16 if dtype == "bf16" else dtype, max_batch_size=4)

    async def main(client):
        for n in (1, 4, 12):
            rows = np.random.default_rng(n).integers(0, 2, (n, 3)).astype(app.model.admission.inputs.dtype)
            found = await client.infer(request("identity", rows, id=str(n)))
            assert found["output"].tobytes() == rows.tobytes() and found["output"].shape == rows.shape
            asked = request("identity", rows)
            del asked.raw_input_contents[:]
            if dtype in CONTENTS:
                getattr(asked.inputs[0].contents, f"{CONTENTS[dtype]}_contents").extend(rows.ravel().tolist())
                assert (await client.infer(asked))["output"].tobytes() == rows.tobytes()
            else:
                asked.inputs[0].contents.fp32_contents.extend([0] * rows.size)
                refused(await client.ask(asked), "INVALID_ARGUMENT", "has no contents: send raw_input_contents")

    run(app, main)


def test_text_is_bytes_both_ways(run):
    class Joined(TensorHandler):
        inputs = {"a": Tensor("str", (2,)), "b": Tensor("bytes")}
        outputs = {"joined": Tensor("str"), "b": Tensor("bytes")}

        def run_inference(self, model_input):
            return {"joined": np.array(["+".join(row) for row in model_input["a"]], object), "b": model_input["b"]}

    upper, joined = http_server("upper", Upper), http_server("joined", Joined)

    async def main(client):
        assert await client.infer(request("upper", [b"a", "ä".encode(), b""])) == {"data": [b"A", "Ä".encode(), b""]}
        asked = request("joined", ("a", [b"1", b"2", "ü".encode(), b""]), ("b", [b"\xff", b"x"]))
        asked.inputs[0].shape[:] = [2, 2]
        assert await client.infer(asked) == {"joined": [b"1+2", "ü+".encode()], "b": [b"\xff", b"x"]}
        asked = InferRequest(model_name="upper")
        asked.inputs.add(name="x", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"ab", b"c"])
        assert await client.infer(asked) == {"data": [b"AB", b"C"]}
        asked = request("joined", ("a", [b"\xff", b"2"]), ("b", [b"x"]))
        asked.inputs[0].shape[:] = [1, 2]
        refused(await client.ask(asked), "INVALID_ARGUMENT", "item 0: input 'a': expected UTF-8")

    run(Services(upper, joined), main)


def test_a_list_handler_takes_numbers_and_gives_them(run):
    async def main(client):
        found = await client.infer(request("echo", np.float64([[1.5, 2], [3, 4]]), name="any"))
        assert found["data"].tolist() == [[1.5, 2], [3, 4]]
        ten = await client.infer(request("echo", np.arange(10)))
        assert ten["data"].tolist() == list(range(10))

    run(http_server("echo", Echo), main)


def test_outputs_are_those_that_are_asked_for_and_the_id_comes_back(run):
    async def main(client):
        asked = request("sums", ("a", np.ones((1, 2, 2), "f4")), ("b", np.arange(1)), id="ä7")
        asked.outputs.add(name="t")
        answer = InferResponse.FromString((await client.ask(asked)).message)
        assert (answer.model_name, answer.model_version, answer.id) == ("sums", "1", "ä7")
        assert [output.name for output in answer.outputs] == ["t"] and len(answer.raw_output_contents) == 1
        asked.outputs.add(name="u")
        refused(await client.ask(asked), "INVALID_ARGUMENT", "outputs: there is no 'u'; expected one of s, t")

    run(http_server("sums", Sums), main)


# ---- what is wrong


def changed(**changes):
    asked = request("identity", ROWS)
    for name, value in changes.items():
        if name == "shape":
            asked.inputs[0].shape[:] = value
        elif name == "raws":
            asked.raw_input_contents[:] = value
        elif hasattr(asked.inputs[0], name):
            setattr(asked.inputs[0], name, value)
        else:
            setattr(asked, name, value)
    return asked


def with_contents(field, values, datatype="FP32", shape=(1, 3)):
    asked = InferRequest(model_name="identity")
    asked.inputs.add(name="input", datatype=datatype, shape=shape)
    getattr(asked.inputs[0].contents, field).extend(values)
    return asked


def with_parameter(where, name, **value):
    asked = request("identity", ROWS)
    if where == "output":
        asked.outputs.add(name="output")
    place = {"request": asked, "input": asked.inputs[0], "output": asked.outputs and asked.outputs[0]}[where]
    for kind, one in value.items():
        setattr(place.parameters[name], kind, one)
    return asked


WRONG = {
    "nothing": (b"", "NOT_FOUND", "model ''"),
    "no protobuf": (b"\x0a\x08identity\xff\xff\xff", "INVALID_ARGUMENT", "expected a ModelInferRequest"),
    "breaks off": (request("identity", ROWS).SerializeToString()[:-5], "INVALID_ARGUMENT", "ModelInferRequest"),
    "model": (changed(model_name="x"), "NOT_FOUND", "model 'x': expected identity"),
    "version": (changed(model_version="2"), "NOT_FOUND", "version '2'"),
    "no inputs": (InferRequest(model_name="identity"), "INVALID_ARGUMENT", "expected a tensor at least"),
    "name": (changed(name="x"), "INVALID_ARGUMENT", "inputs: expected the names input, got x"),
    "datatype": (changed(datatype="FP64"), "INVALID_ARGUMENT", "input 'input': expected FP32 [n, 3], got FP64 [1, 3]"),
    "no datatype": (changed(datatype="fp32"), "INVALID_ARGUMENT", "expected FP32 [n, 3], got fp32 [1, 3]"),
    "shape": (changed(shape=[1, 4]), "INVALID_ARGUMENT", "expected FP32 [n, 3], got FP32 [1, 4]"),
    "no dimension": (changed(shape=[]), "INVALID_ARGUMENT", "expected whole numbers in 'shape'"),
    "no items": (changed(shape=[0, 3]), "INVALID_ARGUMENT", "expected an item at least"),
    "negative": (changed(shape=[-1, 3]), "INVALID_ARGUMENT", "expected whole numbers in 'shape'"),
    "huge": (changed(shape=[2**62 - 1, 3]), "INVALID_ARGUMENT", "expected "),
    "2**63": (changed(shape=[2**63 - 1, 3]), "INVALID_ARGUMENT", "expected whole numbers in 'shape'"),
    "truncated": (changed(raws=[b"123"]), "INVALID_ARGUMENT", "expected 12 bytes for FP32 [1, 3], got 3"),
    "too long": (changed(raws=[bytes(16)]), "INVALID_ARGUMENT", "expected 12 bytes for FP32 [1, 3], got 16"),
    "two raws": (changed(raws=[bytes(12)] * 2), "INVALID_ARGUMENT", "raw_input_contents: expected 1"),
    "no raws": (changed(raws=[]), "INVALID_ARGUMENT", "input 'input': expected 3 values in fp32_contents"),
    "other contents": (with_contents("int_contents", [1, 2, 3]), "INVALID_ARGUMENT", "fp32_contents for FP32, got int"),
    "few contents": (with_contents("fp32_contents", [1, 2]), "INVALID_ARGUMENT", "expected 3 values in fp32_contents"),
    "many contents": (with_contents("fp32_contents", [1] * 4), "INVALID_ARGUMENT", "expected 3 values in fp32"),
    "does not fit": (with_contents("int_contents", [1, 300, 3], "INT8"), "INVALID_ARGUMENT", "INT8, got 300 (value 1)"),
    "unknown type": (with_contents("int_contents", [1], "INT4"), "INVALID_ARGUMENT", "datatype 'INT4'"),
    "timeout": (with_parameter("request", "timeout", string_param="1"), "INVALID_ARGUMENT", "expected microseconds"),
    "final": (
        with_parameter("request", "triton_enable_empty_final_response", string_param="yes"),
        "INVALID_ARGUMENT",
        "triton_enable_empty_final_response: expected bool_param, got 'yes'",
    ),
    "region": (with_parameter("input", "shared_memory_region", string_param="r"), "UNIMPLEMENTED", "shared memory"),
    "classes": (with_parameter("output", "classification", int64_param=2), "UNIMPLEMENTED", "no classification"),
    "id": (request("identity", ROWS).SerializeToString() + b"\x1a\x01\xff", "INVALID_ARGUMENT", "id: expected UTF-8"),
}
BOTH = changed()
BOTH.inputs[0].contents.fp32_contents.extend([1, 2, 3])
WRONG["both"] = BOTH, "INVALID_ARGUMENT", "got contents, and raw_input_contents too"


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_and_does_no_harm(run, wrong, several):
    app = Services(identity(), http_server("other", Echo)) if several else identity()
    message, code, says = WRONG[wrong]

    async def main(client):
        told = await client.ask(message)
        if wrong in ("nothing", "no protobuf", "breaks off") and not several:
            assert told.code in ("INVALID_ARGUMENT", "NOT_FOUND") and told.details
        else:
            refused(told, code, says)
        assert told.metadata["x-request-id"]
        assert (await client.infer(request("identity", ROWS)))["output"].tolist() == ROWS.tolist()

    run(app, main)


def test_a_field_that_the_protocol_has_not_is_read_over(run):
    async def main(client):
        message = request("identity", ROWS, id="7").SerializeToString() + b"\xf8\x7f\x01"
        told = await client.ask(message)
        assert told.code == "OK" and InferResponse.FromString(told.message).id == "7"

    run(identity(), main)


def test_a_final_response_that_is_asked_for_is_there_already(run):
    async def main(client):
        asked = with_parameter("request", "triton_enable_empty_final_response", bool_param=True)
        (answer,) = await streamed(client, asked)
        assert not answer.error_message and answer.infer_response.parameters["triton_final_response"].bool_param

    run(identity(), main)


def test_an_item_that_the_handler_refuses_is_an_invalid_argument_and_one_it_fails_on_internal(run):
    class Picky(Upper):
        def run_inference(self, model_input):
            if "no" in model_input:
                raise ItemError("expected yes", model_input.index("no"))
            for word, status in (("taken", 409), ("stale", 412)):
                if word in model_input:
                    raise ItemError(word, model_input.index(word), status=status)
            if "fail" in model_input:
                raise KeyError("a secret")
            return model_input

    async def main(client):
        refused(await client.ask(request("picky", [b"yes", b"no"])), "INVALID_ARGUMENT", "item 1: expected yes")
        refused(await client.ask(request("picky", [b"taken"])), "ABORTED", "item 0: taken")
        refused(await client.ask(request("picky", [b"stale"])), "FAILED_PRECONDITION", "item 0: stale")
        told = await client.ask(request("picky", [b"fail"]), metadata=[("x-request-id", "mine")])
        refused(told, "INTERNAL", "run_inference", "request id mine")
        assert "secret" not in told.details and told.metadata["x-request-id"] == "mine"
        counted = (await ask_direct(app, method="GET", path="/metrics/live")).json["metrics"]["virtex_requests_total"]
        assert counted == {"400": 1, "409": 1, "412": 1, "500": 1}  # what the handler refused is a 400, as by REST

    app = http_server("picky", Picky)
    run(app, main)


def test_a_long_reason_is_cut_for_it_travels_in_a_header(run):
    class Wordy(Upper):
        def run_inference(self, model_input):
            raise ItemError("ä" * 50_000, 0)

    async def main(client):
        told = await client.ask(request("upper", [b"x"]))
        refused(told, "INVALID_ARGUMENT", "item 0: ää")
        assert 1998 < len(told.details.encode()) <= 2000 and told.details.endswith("ä")

    run(http_server("upper", Wordy), main)


def test_outputs_that_lie_otherwise_in_memory_travel_as_v2_has_them(run):
    class Lies(TensorHandler):
        inputs = Tensor("f4", (3,))

        def run_inference(self, model_input):
            return {"other end": model_input.astype(">f4"), "other way": model_input[:, ::-1]}

    async def main(client):
        found = await client.infer(request("lies", ROWS))
        assert found["other end"].tolist() == [[1, 2, 3]] and found["other way"].tolist() == [[3, 2, 1]]

    run(http_server("lies", Lies), main)


def test_a_handler_sees_the_parameters_of_a_request_and_may_change_them(run):
    seen = []

    class Looks(Upper):
        def process_request(self, data, requests):
            seen.append(dict(requests[0].parameters))
            requests[0].parameters.clear()
            return data

    async def main(client):
        asked = request("looks", [b"x"])
        values = {"s": ("string_param", "t"), "n": ("int64_param", 7), "b": ("bool_param", True)}
        for name, (kind, value) in values.items():
            setattr(asked.parameters[name], kind, value)
        for _ in range(2):  # the same head again
            await client.infer(asked)
        assert seen == [{"s": "t", "n": 7, "b": True}] * 2

    run(http_server("looks", Looks), main)


def test_a_handler_of_a_dtype_that_v2_has_not_is_unimplemented(run):
    async def main(client):
        refused(await client.ask(request("identity", ROWS)), "UNIMPLEMENTED", "V2 has no datatype for input")

    run(identity("c8"), main)


# ---- who may, how much, how long


def test_a_key_is_asked_for_all_but_health(run):
    app = identity(api_key="secret")

    async def main(client):
        key = [("authorization", "Bearer secret")]
        for method in ("ServerLive", "ServerReady"):
            assert (await client.ask(method=method)).code == "OK"
        for method in ("ModelInfer", "ServerMetadata", "ModelMetadata", "ModelReady"):
            message = request("identity", ROWS) if method == "ModelInfer" else ModelName(name="identity")
            told = await client.ask(message, method)
            refused(told, "UNAUTHENTICATED", "not authorized")
            assert told.metadata["www-authenticate"] == "Bearer"
            assert (await client.ask(message, method, metadata=key)).code == "OK"
        stream = client.channel.stream_stream(SERVICE + "ModelStreamInfer")
        with pytest.raises(grpc.aio.AioRpcError, match="not authorized"):
            await stream(iter([b""])).read()

    run(app, main)


def test_authorize_sees_each_call_as_the_head_of_a_request(run):
    seen = []

    def authorize(head):
        seen.append((head.method, head.path, head.header("X-User"), head.length))
        return {"ann": True, "bob": 403, "eve": 429}.get(head.header("x-user"), False)

    async def main(client):
        codes = {}
        for user in ("ann", "bob", "eve", "zoe"):
            codes[user] = (await client.ask(request("identity", ROWS), metadata=[("x-user", user)])).code
        assert codes == {"ann": "OK", "bob": "PERMISSION_DENIED", "eve": "RESOURCE_EXHAUSTED", "zoe": "UNAUTHENTICATED"}
        assert seen[0] == ("POST", SERVICE + "ModelInfer", "ann", None) and len(seen) == 4

    run(identity(authorize=authorize), main)


def test_each_of_several_services_has_its_own_key(run):
    mine, yours = identity(name="mine", api_key="m"), identity(name="yours", api_key="y")

    async def main(client):
        key = [("authorization", "Bearer m")]
        assert (await client.ask(request("mine", ROWS), metadata=key)).code == "OK"
        refused(await client.ask(request("yours", ROWS), metadata=key), "UNAUTHENTICATED")
        refused(await client.ask(ModelName(name="yours"), "ModelMetadata", metadata=key), "UNAUTHENTICATED")
        refused(await client.ask(request("none", ROWS)), "UNAUTHENTICATED")
        refused(await client.ask(request("none", ROWS), metadata=key), "NOT_FOUND", "expected mine, yours")

    run(Services(mine, yours), main)


def test_a_service_that_would_not_let_a_call_in_has_not_lost_one_that_another_answers(run, caplog):
    caplog.set_level(logging.INFO, "virtex")
    app = Services(identity(name="a", api_key="one"), identity(name="b", api_key="two"))

    async def main(client):
        key = (("authorization", "Bearer two"),)
        await client.infer(request("b", ROWS), metadata=key)
        assert not [record for record in caplog.records if getattr(record, "status", 0) == 401]
        refused(await client.ask(request("b", ROWS)), "UNAUTHENTICATED")
        assert len([record for record in caplog.records if getattr(record, "status", 0) == 401]) == 1

    run(app, main)


def test_a_message_over_the_limit_is_refused(run):
    limits = Limits(body=1000)
    one, other = identity(limits=limits), identity(name="large", limits=Limits(body=10_000))

    async def main(client):
        refused(await client.ask(request("identity", np.zeros((1000, 3), "f4"))), "RESOURCE_EXHAUSTED")
        refused(await client.ask(request("identity", np.zeros((100, 3), "f4"))), "RESOURCE_EXHAUSTED", "limit is 1000")
        assert (await client.infer(request("large", np.zeros((100, 3), "f4"))))["output"].shape == (100, 3)

    run(Services(one, other), main)


def test_no_room_is_unavailable_and_says_when_to_come_again(run):
    app = identity(name="full", limits=Limits(max_bytes=4 << 20, body=1 << 20), max_batch_size=4)

    async def main(client):
        app.budget.held += app.budget.budget
        told = await client.ask(request("full", ROWS))
        refused(told, "UNAVAILABLE", "limits.max_bytes")
        assert (told.metadata["retry-after"], told.metadata["grpc-retry-pushback-ms"]) == ("1", "1000")
        app.budget.held -= app.budget.budget
        took = (await ask_direct(app, method="GET", path="/metrics/live")).json["metrics"][
            "virtex_request_duration_seconds"
        ]
        assert sum(took["counts"]) == 1 and took["sum"] > 0
        large = with_contents("fp32_contents", [1.0] * 120_000, shape=(40_000, 3))
        large.model_name = "full"
        refused(await client.ask(large), "UNAVAILABLE", "limits.max_bytes")
        assert (await client.infer(request("full", ROWS)))["output"].tolist() == ROWS.tolist()
        assert app.budget.held == 0

    run(app, main)


def test_whatever_a_message_becomes_is_charged(run):
    handler = Gated()
    app = http_server("gated", handler)

    async def charged(client, message):
        handler.gate.clear()
        call, before = asyncio.create_task(client.ask(message)), len(handler.sizes)
        await eventually(lambda: len(handler.sizes) > before)
        held = app.budget.held
        handler.gate.set()
        assert (await call).code == "OK" and app.budget.held == 0
        return held - len(message)

    async def main(client):
        rows = np.zeros((200, 3), "f4")
        usual = await charged(client, request("gated", rows).SerializeToString())
        one_by_one = with_contents("fp32_contents", [0.0] * 600, shape=(200, 3))
        one_by_one.model_name = "gated"
        message = one_by_one.SerializeToString()
        more = 600 * VALUE_BYTES + GROWN * len(message) + rows.nbytes  # the values, protobuf's, the tensor
        assert 0 <= await charged(client, message) - usual - more < 200  # its head
        more = await charged(client, request("gated", rows, id="i" * 10_000).SerializeToString()) - usual
        assert more == 10_000
        asked = request("gated", rows)
        asked.parameters["long"].string_param = "p" * 10_000
        more = await charged(client, asked.SerializeToString()) - usual
        assert 0 <= more - GROWN * 10_000 < GROWN * 200

    run(app, main)


def test_the_client_of_a_call_is_company_for_the_next_batch(run):
    app = identity()

    async def main(client):
        await client.infer(request("identity", ROWS))
        ((peer,),) = app.model.admission.peers.values()
        assert peer.expected_since and not peer.open
        peer.expected_since = 0
        call = client.channel.stream_stream(SERVICE + "ModelInfer")()
        await eventually(lambda: peer.open and peer.expected_since)  # its message is still to come
        call.cancel()

    run(app, main)


def test_calls_of_one_connection_are_company_for_each_other(run):
    """As many connections would be: it has others under way when a call is answered."""
    sizes, goes_on = [], asyncio.Event()

    class Counts(TensorHandler):
        inputs = outputs = Tensor("f4", (3,))

        async def run_inference(self, batch):
            sizes.append(len(batch))
            await goes_on.wait()
            return batch

    app = http_server("counts", Counts, max_time_on_queue=20.0)

    async def main(client):
        for _ in range(3):
            calls = asyncio.gather(*(client.infer(request("counts", ROWS)) for _ in range(4)))
            await eventually(lambda: app.model.admission.unsettled == 4 or goes_on.is_set())
            goes_on.set()  # of the first ones all four are under way
            await calls
        assert sizes[-2:] == [4, 4]

    run(app, main)


def test_metadata_may_be_bytes(run):
    async def main(client):
        assert (await client.ask(request("identity", ROWS), metadata=[("x-trace-bin", b"\x00\xff")])).code == "OK"

    run(identity(), main)


@pytest.mark.parametrize(("left", "patience"), [(None, 0), (0.0, 1), (2.0, 2 * 10**9), (3.6e11, 10**18)])
def test_the_time_that_is_left_of_a_call_is_a_heads_patience(left, patience):
    context = SimpleNamespace(invocation_metadata=tuple, peer=lambda: "", time_remaining=lambda: left)
    assert (
        Calls(identity(), Limits(max_bytes=1000))._head("ModelInfer", context).patience == patience
    )  # ns; 0: it did not say


def test_numbers_one_by_one_are_no_more_than_values_and_raw_ones_are(run):
    app = identity(limits=Limits(values=100))

    async def main(client):
        many = with_contents("fp32_contents", [1.0] * 300, shape=(100, 3))
        refused(await client.ask(many), "RESOURCE_EXHAUSTED", "more than 100 values", "limits.values", "send raw")
        assert len((await client.infer(request("identity", np.zeros((100, 3), "f4"))))["output"]) == 100

    run(app, main)


def test_a_compressed_message_is_bounded_by_what_it_becomes(run):
    async def main(client):
        call = client.channel.unary_unary(SERVICE + "ModelInfer")
        asked = request("identity", np.zeros((300, 3), "f4")).SerializeToString()
        assert len(outputs_of_message(await call(asked, compression=grpc.Compression.Gzip))["output"]) == 300
        bomb = request("identity", np.zeros((100_000, 3), "f4")).SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bomb, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(identity(limits=Limits(body=10_000)), main)


def test_the_calls_deadline_is_the_requests(run):
    seen = []

    class Slow(Gated):
        async def run_inference(self, model_input, requests):
            seen.append(requests[0])
            return await super().run_inference(model_input)

    handler = Slow()

    async def main(client):
        begun = time.perf_counter()
        refused(await client.ask(request("slow", ROWS), timeout=0.2), "DEADLINE_EXCEEDED")
        await eventually(lambda: app.model.admission.unsettled == 0)
        asked = request("slow", ROWS)
        asked.parameters["timeout"].int64_param = 100_000  # us
        told = await client.ask(asked, timeout=20)
        refused(told, "DEADLINE_EXCEEDED", "no answer within 0.1 s")
        assert seen[0].path == SERVICE + "ModelInfer" and seen[0].method == "POST"
        assert seen[0].deadline < begun + 5  # and not 60 s
        handler.gate.set()

    app = http_server("slow", handler)
    run(app, main)


def test_the_inference_of_a_call_that_is_cancelled_is_not_spent(run):
    handler = Gated()
    app = http_server("gated", handler)

    async def main(client):
        first = await computing(client, handler)
        calls = [asyncio.create_task(client.ask(request("gated", ROWS))) for _ in range(2)]
        await eventually(lambda: app.model.batcher.waiting == 2)
        for call in calls:
            call.cancel()
        await eventually(lambda: app.model.admission.unsettled == 1)
        handler.gate.set()
        assert (await first).code == "OK"
        await client.infer(request("gated", ROWS))
        assert handler.sizes == [1, 1] and app.budget.held == 0

    run(app, main)


def test_what_is_refused_and_lost_is_counted_and_logged(run, caplog):
    app = identity(name="counted")

    async def main(client):
        caplog.set_level(logging.INFO, "virtex")
        await client.infer(request("counted", ROWS))
        await client.ask(changed(model_name="counted", shape=[1, 4]), metadata=[("x-request-id", "mine")])
        assert any("request mine: 400" in line for line in caplog.messages)
        figures = (await ask_direct(app, method="GET", path="/metrics/live")).json
        assert figures["metrics"]["virtex_requests_total"] == {"200": 1, "400": 1}, figures["metrics"]

    run(app, main)


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_the_id_of_a_refusal_is_that_of_the_log(run, caplog, several):
    app = Services(identity(), http_server("other", Echo)) if several else identity()

    async def main(client):
        caplog.set_level(logging.INFO, "virtex")
        told = await client.ask(changed(shape=[1, 4]))
        assert [line for line in caplog.messages if line.startswith(f"request {told.metadata['x-request-id']}: 400")]

    run(app, main)


def test_several_services_are_ready_once_all_are_and_what_none_has_seen_has_its_clients_id(run):
    one, other = identity(), http_server("other", Echo)

    async def main(client):
        head = [("x-request-id", "mine")]
        for message, method in ((request("none", ROWS), "ModelInfer"), (b"", "ServerMetadata"), (b"", "ServerReady")):
            assert (await client.ask(message, method, metadata=head)).metadata["x-request-id"] == "mine"
        assert State.FromString((await client.ask(method="ServerReady")).message).holds
        other.drain()
        assert not State.FromString((await client.ask(method="ServerReady")).message).holds

    run(Services(one, other), main)


# ---- streams


async def streamed(client, *messages, **more):
    call = client.channel.stream_stream(SERVICE + "ModelStreamInfer")(
        iter([m.SerializeToString() for m in messages]), **more
    )
    return [StreamResponse.FromString(answer) async for answer in call]


def test_a_stream_has_an_answer_for_each_request_in_order_whatever_is_wrong_with_some(run):
    async def main(client):
        asked = []
        for k in range(60):
            rows = np.full((1 + k % 3, 3), k, "f4")
            asked.append(request("identity", rows, id=str(k)))
            if k % 7 == 3:
                asked[-1].inputs[0].shape[1] = 4
            if k % 7 == 5:
                asked[-1].model_name = "none"
        answers = await streamed(client, *asked)
        assert [answer.infer_response.id for answer in answers] == [str(k) for k in range(60)]
        for k, answer in enumerate(answers):
            (final,) = answer.infer_response.parameters.items()
            assert final[0] == "triton_final_response" and final[1].bool_param is True
            says = {3: "INVALID_ARGUMENT: input 'input'", 5: "NOT_FOUND: model 'none'"}.get(k % 7, "")
            assert answer.error_message.startswith(says) and bool(answer.error_message) == bool(says)
            if not says:
                (rows,) = outputs_of_message(answer.infer_response.SerializeToString()).values()
                assert (rows == k).all() and len(rows) == 1 + k % 3

    run(Services(identity(), http_server("echo", Echo)), main)


def test_requests_of_a_stream_share_batches_and_no_more_wait_than_are_pipelined(run):
    handler = Gated()
    app = http_server("gated", handler, limits=Limits(pipelined=4))

    async def main(client):
        asking = asyncio.create_task(streamed(client, *[request("gated", ROWS, id=str(k)) for k in range(12)]))
        await eventually(lambda: app.model.admission.unsettled >= 4)
        for _ in range(20):  # in which a fifth would come
            await client.ask(method="ServerLive")
        assert app.model.admission.unsettled == 4
        handler.gate.set()
        answers = await asking
        assert [answer.infer_response.id for answer in answers] == [str(k) for k in range(12)]
        assert sum(handler.sizes) == 12 and len(handler.sizes) < 12

    run(app, main)


def test_a_stream_that_is_cancelled_gives_up_what_it_asked(run):
    handler = Gated()
    app = http_server("gated", handler)

    async def main(client):
        first = await computing(client, handler)
        asking = [asyncio.create_task(streamed(client, *[request("gated", ROWS) for _ in range(5)]))]
        await eventually(lambda: app.model.batcher.waiting == 5)
        asking[0].cancel()
        await asyncio.wait(asking)
        await eventually(lambda: not [1 for task in asyncio.all_tasks() if task.get_coro().__name__ == "_read"])
        await eventually(lambda: app.model.admission.unsettled == 1)
        handler.gate.set()
        assert (await first).code == "OK"
        await client.infer(request("gated", ROWS))
        assert handler.sizes == [1, 1] and app.budget.held == 0

    run(app, main)


# ---- the same service as everybody's


def test_messages_v2_by_rest_and_grpc_share_a_batch(run):
    handler = Gated()
    app = http_server("gated", handler)

    async def main(client):
        first = asyncio.create_task(client.infer(request("gated", ROWS)))
        await eventually(lambda: handler.sizes == [1])
        asked = [
            asyncio.create_task(client.infer(request("gated", ROWS * 2))),
            asyncio.create_task(infer(app, tensor("input", ROWS * 3, binary=True))),
            asyncio.create_task(ask_direct(app, b'{"data":[[4,8,12]]}')),
        ]
        await eventually(lambda: app.model.batcher.waiting == 3)
        handler.gate.set()
        by_grpc, by_rest, by_message = await asyncio.gather(*asked)
        assert (await first)["output"].tolist() == [[1, 2, 3]] and by_grpc["output"].tolist() == [[2, 4, 6]]
        assert outputs_of(by_rest)["output"].tolist() == [[3, 6, 9]] and by_message.json["data"] == [[4, 8, 12]]
        assert handler.sizes == [1, 3]

    run(app, main)


def test_many_clients_at_once_get_their_own_rows(run):
    async def main(client):
        async def one(k):
            rows = np.full((1 + k % 5, 3), k, "f4")
            assert ((await client.infer(request("identity", rows, id=str(k))))["output"] == rows).all()

        await asyncio.gather(*(one(k) for k in range(300)))

    run(identity(executor="thread"), main)


def test_what_is_held_is_given_back(run):
    app = identity(limits=Limits(body=8 << 20))

    async def main(client):
        rows = np.zeros((100_000, 3), "f4")
        for _ in range(3):
            assert (await client.infer(request("identity", rows)))["output"].shape == rows.shape
            refused(await client.ask(request("identity", rows[:, :2])), "INVALID_ARGUMENT")
        assert app.budget.held == 0

    run(app, main, ("grpc.max_receive_message_length", -1))


# ---- its life


def test_stop_answers_what_was_taken_and_takes_no_more(runner):
    handler = Gated()
    app = http_server("gated", handler)

    async def main():
        server = await serve_grpc(app, port=0)
        client = Client(server.port)
        try:
            asked = asyncio.create_task(client.infer(request("gated", ROWS)))
            streaming = client.channel.stream_stream(SERVICE + "ModelStreamInfer")()
            await streaming.write(request("gated", ROWS, id="s").SerializeToString())
            await eventually(lambda: app.model.admission.unsettled == 2)
            stopping = asyncio.create_task(server.stop(20))
            await asyncio.sleep(0)
            handler.gate.set()
            assert (await asked)["output"].tolist() == ROWS.tolist()
            assert StreamResponse.FromString(await streaming.read()).infer_response.id == "s"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await streaming.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and "is stopping" in caught.value.details()
            await stopping
            assert not server.calls._reading
            assert (await client.ask(request("gated", ROWS), timeout=5)).code == "UNAVAILABLE"
            await app.shutdown()
            assert handler.torn_down
        finally:
            await client.close()
            await app.shutdown()

    runner.run(asyncio.wait_for(main(), 30))


def test_a_service_that_drains_is_not_ready_and_one_that_has_shut_down_unavailable(run):
    app = identity()

    async def main(client):
        app.drain()
        assert not State.FromString((await client.ask(method="ServerReady")).message).holds
        assert State.FromString((await client.ask(method="ServerLive")).message).holds
        assert not State.FromString((await client.ask(ModelName(name="identity"), "ModelReady")).message).holds
        assert (await client.infer(request("identity", ROWS)))["output"].tolist() == ROWS.tolist()
        await app.shutdown()
        refused(await client.ask(request("identity", ROWS)), "UNAVAILABLE", "has shut down")

    run(app, main)


def test_a_call_waits_for_a_service_that_starts_as_any_request_does(runner):
    gate = asyncio.Event()

    class Slow(Gated):
        async def setup(self, worker):
            await gate.wait()

    handler = Slow()
    app = http_server("gated", handler)

    async def main():
        async with GrpcServer(app, ["127.0.0.1:0"], shares=False) as server:
            await server.start()
            client = Client(server.port)
            asked = asyncio.create_task(client.ask(request("gated", ROWS)))
            await eventually(lambda: app._model is not None and app.model.admission.unsettled == 1)
            told = await client.ask(ModelName(name="gated"), "ModelMetadata")
            refused(told, "UNAVAILABLE", "not ready: the service is starting")
            assert not State.FromString((await client.ask(ModelName(name="gated"), "ModelReady")).message).holds
            gate.set()
            handler.gate.set()
            assert outputs_of_message((await asked).message)["output"].tolist() == ROWS.tolist()
            await client.close()
        await app.shutdown()

    runner.run(asyncio.wait_for(main(), 30))


def test_a_taken_port_a_wrong_app_and_a_start_that_fails_are_said(runner):
    class Broken(Echo):
        def setup(self, worker):
            raise OSError("no such model")

    async def main():
        async with await serve_grpc(identity(), port=0) as server:
            with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{server.port} for gRPC"):
                await serve_grpc(identity(), port=server.port)
        with pytest.raises(TypeError, match="expected what http_server\\(\\) or Services\\(\\) made, got a function"):
            await serve_grpc(lambda scope, receive, send: None, port=0)
        number = free_port()
        with pytest.raises(OSError, match="no such model"):
            await serve_grpc(http_server("broken", Broken), port=number)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", number))  # it is free again

    runner.run(main())


def test_texts_of_a_length_beyond_the_tensor_are_refused(run):
    async def main(client):
        asked = request("upper", [b"abc"])
        for raw in (b"\xff\xff\xff\xff", b"\x04\0\0\0abc", texts(b"a") + b"x", b"ab", b""):
            asked.raw_input_contents[:] = [raw]
            refused(await client.ask(asked), "INVALID_ARGUMENT", "input 'input'")

    run(http_server("upper", Upper), main)


# ---- clients that mean no good


def lying(shape=(), head=b"", **more):
    asked = changed(shape=list(shape), **more)
    return head + asked.SerializeToString()


def long_and_contents(n):
    asked = with_contents("fp32_contents", [1, 2, 3])
    return changed(shape=[1] * n, raws=[]).SerializeToString() + asked.SerializeToString()


def of_contents(field, values, n):
    return with_contents(field, values * n, "BYTES", [n]).SerializeToString()


LIES = {
    "a shape of many numbers": (lying([2**62] * 300, raws=[]), "INVALID_ARGUMENT", "expected 32 dimensions at most"),
    "a field of nobody": (
        lying([1, 3], b"\x78\x01" + b"\x2a\x00" * 40_000),
        "INVALID_ARGUMENT",
        "the protocol has not",
    ),
    "a long head": (lying([1] * 600_000), "RESOURCE_EXHAUSTED", "bytes beside id and tensors"),
    "a long head ahead of contents": (
        long_and_contents(600_000),
        "RESOURCE_EXHAUSTED",
        "bytes beside id and tensors",
    ),
    "texts of nothing": (
        of_contents("bytes_contents", [b""], 2_000_000),
        "RESOURCE_EXHAUSTED",
        "more than 524288 values",
    ),
    "many values in each of several inputs": (
        of_contents("bool_contents", [True], 300_000) * 2,
        "RESOURCE_EXHAUSTED",
        "limits.values",
    ),
    "many fields": (lying([1, 3], b"\x1a\x00" * 5000), "RESOURCE_EXHAUSTED", "more than 4096 fields"),
}


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("lie", LIES)
def test_what_would_occupy_the_loop_is_refused_ahead_of_it(run, lie, several):
    app = Services(identity(), http_server("other", Echo)) if several else identity()
    message, code, says = LIES[lie]

    async def main(client):
        said = await client.ask(message)
        if not (several and lie == "a field of nobody"):  # whose model is not looked for
            refused(said, code, says)
        (answer,) = await raw_stream(client, message)
        assert answer.error_message
        assert (await client.infer(request("identity", ROWS)))["output"].tolist() == ROWS.tolist()

    run(app, main)


async def raw_stream(client, *messages):
    call = client.channel.stream_stream(SERVICE + "ModelStreamInfer")(iter(messages))
    return [StreamResponse.FromString(answer) async for answer in call]


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "ModelReady"])
def test_a_call_without_a_message_is_not_waited_for_without_an_end(run, method, several):
    limits = Limits(answer_seconds=0.2)
    one = identity(limits=limits)
    app = Services(one, http_server("other", Echo, limits=limits)) if several else one

    async def main(client):
        call = client.channel.stream_stream(SERVICE + method)()
        with pytest.raises(grpc.aio.AioRpcError, match="no message was all there within 0.2 s") as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert one.model.admission.unsettled == 0 and app.budget.held == 0

    run(app, main)


def test_a_stream_that_is_not_read_keeps_no_messages_whose_answers_are_there(run):
    class Narrow(TensorHandler):
        inputs = Tensor("u1", (4_000_000,))
        outputs = Tensor("u1", (400_000,))

        runs = 0

        def run_inference(self, model_input):
            self.runs += 1
            return model_input[:, :400_000]

    handler = Narrow()
    app = http_server("narrow", handler, max_batch_size=1)

    async def main(client):
        message = request("narrow", np.zeros((1, 4_000_000), "u1")).SerializeToString()
        call = client.channel.stream_stream(SERVICE + "ModelStreamInfer")()
        await call.write(message)
        tracemalloc.start()
        try:
            for _ in range(5):
                await call.write(message)
            await eventually(lambda: handler.runs == 6 and not app.model.admission.unsettled)
            kept = [trace for trace in tracemalloc.take_snapshot().traces if trace.size >= len(message) - 1000]
            assert len([trace for trace in kept if trace.domain == 0]) <= 1
        finally:
            tracemalloc.stop()
            call.cancel()

    run(app, main)


def test_a_connection_that_says_nothing_is_ended(runner):
    app = identity(limits=Limits(idle_seconds=0.2, keep_alive_seconds=0.3))
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and its settings

    async def main():
        async with await serve_grpc(app, port=0) as server:
            for sent in (b"", greeting[:10], greeting):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(sent)
                await asyncio.wait_for(reader.read(), 20)  # until its end
                writer.close()
        await app.shutdown()

    runner.run(main())


def test_a_path_that_is_no_text_ends_neither_the_server_nor_what_others_asked(runner, caplog):
    """grpc's server breaks down at one: another one listens there, while the first answers what it took."""
    handler = Gated()
    app = http_server("gated", handler)

    async def main():
        async with await serve_grpc(app, port=0) as server:
            client, other = (Client(server.port, ("grpc.use_local_subchannel_pool", 1)) for _ in range(2))
            held = await computing(client, handler)
            for _ in range(2):  # the one that takes its place, too
                await asyncio.to_thread(odd_call, server.port, b"/\xff")
                while caplog.text.count("another one takes its place: UnicodeDecodeError") == _:
                    await asyncio.sleep(0.01)
                assert (await other.ask(method="ServerLive", wait_for_ready=True, timeout=30)).code == "OK"
            handler.gate.set()
            assert (await held).code == "OK"
            for each in (client, other):
                await each.close()
        await app.shutdown()

    runner.run(asyncio.wait_for(main(), 60))

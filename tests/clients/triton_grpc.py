"""What tritonclient asks over gRPC of the services of test_v2_clients.py, and what it gets.

python tests/clients/triton_grpc.py HOST:PORT    in an environment with tritonclient
"""

import asyncio
import queue
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

URL = sys.argv[1]
DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


def given(name, array, datatype=None):
    tensor = grpc.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def refused(client, status, model, inputs, **more):
    try:
        client.infer(model, inputs, **more)
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{status}" and error.message(), error
    else:
        raise AssertionError(f"{model} took {inputs}")


client = grpc.InferenceServerClient(URL)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("sums", "1")
assert not client.is_model_ready("none") and client.get_server_metadata().name == "virtex"
(tensor,) = client.get_model_metadata("as f4").inputs
assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("input", "FP32", [-1, 3])
assert client.get_model_metadata("as f4", as_json=True)["inputs"][0]["shape"] == ["-1", "3"]

for dtype in [*DTYPES, ml_dtypes.bfloat16]:
    model = "as bf16" if dtype is ml_dtypes.bfloat16 else f"as {dtype}"
    for n in (1, 4, 12):
        array = np.random.default_rng(n).integers(0, 2, (n, 3)).astype(dtype)
        for outputs in (None, [grpc.InferRequestedOutput("output")]):
            answer = client.infer(model, [given("input", array)], outputs=outputs, request_id="7")
            got = answer.as_numpy("output")
            assert (got == array).all() and got.shape == array.shape, (dtype, n)
            assert answer.get_response().id == "7"

a, b = np.float32([[1, 2], [3, np.nan]]), np.int64([1, 2])
two = [given("b", b), given("a", a)]
answer = client.infer("sums", two, outputs=[grpc.InferRequestedOutput("sum"), grpc.InferRequestedOutput("b")])
assert (
    answer.as_numpy("sum")[0] == 4 and np.isnan(answer.as_numpy("sum")[1]) and answer.as_numpy("b").tolist() == [1, 2]
)
texts = np.array([b"a", "\u00e4".encode(), b""], object)
got = client.infer("upper", [given("any", texts)]).as_numpy("data")
assert [text.decode() for text in got] == ["A", "\u00c4", ""], got
client.infer("upper", [given("any", texts)], timeout=5_000_000, priority=1, sequence_id=3, sequence_start=True)
client.infer("as f4", [given("input", np.zeros((100, 3), "f4"))], compression_algorithm="gzip")
client.infer("as f4", [given("input", np.zeros((1, 3), "f4"))], parameters={"mine": 1}, headers={"x-mine": "1"})

refused(client, "NOT_FOUND", "none", two)
refused(client, "NOT_FOUND", "sums", two, model_version="2")
refused(client, "INVALID_ARGUMENT", "sums", two[:1])
refused(client, "INVALID_ARGUMENT", "sums", [given("a", a), given("b", b[:1])])
refused(client, "INVALID_ARGUMENT", "as f4", [given("input", a)])
refused(client, "INVALID_ARGUMENT", "as f4", [given("input", np.zeros((1, 3)))])
refused(client, "INVALID_ARGUMENT", "as f4", [given("x", np.zeros((1, 3), "f4"))])
one = [given("input", np.zeros((1, 3), "f4"))]
refused(client, "INVALID_ARGUMENT", "as f4", one, outputs=[grpc.InferRequestedOutput("x")])
refused(client, "UNIMPLEMENTED", "as f4", one, outputs=[grpc.InferRequestedOutput("output", class_count=2)])
refused(client, "DEADLINE_EXCEEDED", "as f4", one, timeout=1)
refused(client, "DEADLINE_EXCEEDED", "late", one, client_timeout=0.2)
for method in (client.get_model_config, client.get_inference_statistics):
    try:
        method("as f4")
    except InferenceServerException as error:
        assert error.status() == "StatusCode.UNIMPLEMENTED" and "ModelInfer" in error.message(), error
    else:
        raise AssertionError(method)

# A stream: answers come in the order of the requests, and one that is refused does not end it
answers = queue.Queue()
with grpc.InferenceServerClient(URL) as streaming:
    streaming.start_stream(callback=lambda result, error: answers.put((result, error)))
    for k in range(30):
        model = "none" if k % 10 == 9 else "as f4"
        streaming.async_stream_infer(model, [given("input", np.full((1 + k % 3, 3), k, "f4"))], request_id=str(k))
    for k in range(30):
        result, error = answers.get(timeout=30)
        if k % 10 == 9:
            assert "NOT_FOUND" in error.message(), error
        else:
            assert error is None and result.get_response().id == str(k)
            assert (result.as_numpy("output") == k).all() and len(result.as_numpy("output")) == 1 + k % 3
    streaming.stop_stream()

# As a caller of models that give many answers asks: each request is over with the answer that says it is the final one
with grpc.InferenceServerClient(URL) as streaming:
    streaming.start_stream(callback=lambda result, error: answers.put((result, error)))
    for k in range(10):
        asked = [given("input", np.full((1, 3), k, "f4"))]
        streaming.async_stream_infer("as f4", asked, request_id=str(k), enable_empty_final_response=True)
    open_ones = {str(k) for k in range(10)}
    while open_ones:
        result, error = answers.get(timeout=30)
        assert error is None and (result.as_numpy("output") == int(result.get_response().id)).all()
        if result.get_response().parameters["triton_final_response"].bool_param:
            open_ones.remove(result.get_response().id)
    streaming.stop_stream()
    assert answers.empty()
assert not client.infer("as f4", one).get_response().parameters  # only a stream may have more than one answer

async_answers = queue.Queue()
for k in range(20):
    array = np.full((1, 3), k, "f4")
    client.async_infer("as f4", [given("input", array)], lambda result, error: async_answers.put((result, error)))
assert sorted(async_answers.get(timeout=30)[0].as_numpy("output")[0, 0] for _ in range(20)) == list(range(20))


def many(n):
    own = grpc.InferenceServerClient(URL)
    array = np.full((1 + n % 5, 3), n, "f4")
    return all((own.infer("as f4", [given("input", array)]).as_numpy("output") == array).all() for _ in range(3))


with ThreadPoolExecutor(32) as pool:
    assert all(pool.map(many, range(32)))


async def main():
    async with aio.InferenceServerClient(URL) as client:
        assert await client.is_server_live() and await client.is_model_ready("sums")
        array = np.float32([[1, 2, 3]])
        answers = await asyncio.gather(*(client.infer("as f4", [given("input", array * k)]) for k in range(50)))
        assert [answer.as_numpy("output")[0, 0] for answer in answers] == list(range(50))

        async def asks():
            for k in range(20):
                yield {"model_name": "as f4", "inputs": [given("input", array * k)], "request_id": str(k)}

        k = 0
        async for result, error in client.stream_infer(asks()):
            assert error is None and result.get_response().id == str(k) and result.as_numpy("output")[0, 0] == k
            k += 1
        assert k == 20


asyncio.run(main())

"""What tritonclient asks of the services of test_v2_clients.py, and what it gets.

python tests/clients/triton.py HOST:PORT    in an environment with tritonclient
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import tritonclient.http as http
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

URL = sys.argv[1]
DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


def given(module, name, array, binary=True, datatype=None):
    tensor = module.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def refused(client, status, model, inputs, **more):
    try:
        client.infer(model, inputs, **more)
    except InferenceServerException as error:
        assert error.status() == str(status) and error.message(), error
    else:
        raise AssertionError(f"{model} took {inputs}")


client = http.InferenceServerClient(URL, concurrency=8)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("sums", "1")
assert not client.is_model_ready("none") and "binary_tensor_data" in client.get_server_metadata()["extensions"]
assert client.get_model_metadata("as f4")["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3]}]

for dtype in [*DTYPES, ml_dtypes.bfloat16]:
    model = "as bf16" if dtype is ml_dtypes.bfloat16 else f"as {dtype}"
    for n in (1, 4, 12):
        array = np.random.default_rng(n).integers(0, 2, (n, 3)).astype(dtype)
        for binary in (True,) if model == "as bf16" else (True, False):
            if dtype == "f2" and not binary:
                continue
            outputs = [http.InferRequestedOutput("output", binary_data=binary)]
            for wanted in (None, outputs):
                answer = client.infer(model, [given(http, "input", array, binary)], outputs=wanted, request_id="7")
                got = answer.as_numpy("output")
                assert (got == array).all() and got.shape == array.shape, (dtype, n, binary)
                assert answer.get_response()["id"] == "7"

a, b = np.float32([[1, 2], [3, np.nan]]), np.int64([1, 2])
two = [given(http, "b", b, False), given(http, "a", a)]
wanted = [http.InferRequestedOutput("sum", binary_data=False), http.InferRequestedOutput("b")]
answer = client.infer("sums", two, outputs=wanted)
assert (
    answer.as_numpy("sum")[0] == 4 and np.isnan(answer.as_numpy("sum")[1]) and answer.as_numpy("b").tolist() == [1, 2]
)
texts = np.array([b"a", "\u00e4".encode(), b""], object)
for binary in (True, False):
    got = client.infer("upper", [given(http, "any", texts, binary)]).as_numpy("data")
    assert [text.decode() if isinstance(text, bytes) else text for text in got] == ["A", "\u00c4", ""], got
client.infer("upper", [given(http, "any", texts)], timeout=5_000_000, priority=1, sequence_id=3, sequence_start=True)

refused(client, 404, "none", two)
refused(client, 400, "sums", two[:1])
refused(client, 400, "sums", [given(http, "a", a), given(http, "b", b[:1])])
refused(client, 400, "as f4", [given(http, "input", a)])
refused(client, 400, "as f4", [given(http, "input", np.zeros((1, 3)))])
refused(client, 400, "as f4", [given(http, "x", np.zeros((1, 3), "f4"))])
refused(client, 400, "as f4", [given(http, "input", np.zeros((1, 3), "f4"))], outputs=[http.InferRequestedOutput("x")])
refused(client, 400, "as f4", [given(http, "input", np.float32([[1, 2, np.nan]]), False)])
refused(client, 504, "as f4", [given(http, "input", np.zeros((1, 3), "f4"))], timeout=1)


def one(n):
    own = http.InferenceServerClient(URL)
    array = np.full((1 + n % 5, 3), n, "f4")
    return all((own.infer("as f4", [given(http, "input", array)]).as_numpy("output") == array).all() for _ in range(3))


with ThreadPoolExecutor(64) as pool:
    assert all(pool.map(one, range(64)))


async def main():
    async with aio.InferenceServerClient(URL) as client:
        assert await client.is_server_live() and await client.is_model_ready("sums")
        array = np.float32([[1, 2, 3]])
        for binary in (True, False):
            answer = await client.infer("as f4", [given(aio, "input", array, binary)])
            assert answer.as_numpy("output").tolist() == [[1, 2, 3]]


asyncio.run(main())

"""What tritonclient asks of the services of test_v2_clients.py, and what it gets.

python tests/clients/triton.py HOST:PORT    in an environment with tritonclient
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

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


def asked(module, model, dtype, n, binary, back, coding):
    """What to ask, and the array that is to come back: in bytes, in JSON, or as the client chooses (None)."""
    array = np.random.default_rng(n).integers(0, 2, (n, 3)).astype(dtype)
    outputs = None if back is None else [module.InferRequestedOutput("output", binary_data=back)]
    codings = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    more = {"outputs": outputs, "request_id": "7", **codings}
    return ((model, [given(module, "input", array, binary)]), more), array


def every_way(module):
    """Every datatype, up to three batches of 4, each way in and out, each coding."""
    for dtype in [*DTYPES, ml_dtypes.bfloat16]:
        model = "as bf16" if dtype is ml_dtypes.bfloat16 else f"as {dtype}"
        forms = (True,) if model in ("as bf16", "as f2") else (True, False)  # the client writes no JSON of the others
        for n, binary, coding in product((1, 4, 12), forms, (None, "gzip", "deflate")):
            for back in (None, *forms):
                yield asked(module, model, dtype, n, binary, back, coding)


def check(answer, array):
    got = answer.as_numpy("output")
    assert (got == array).all() and got.shape == array.shape and got.dtype == array.dtype, (got, array)
    assert answer.get_response()["id"] == "7"


for (of, more), array in every_way(http):
    check(client.infer(*of, **more), array)

large = np.random.default_rng(1).integers(0, 3, (2000, 3)).astype("f4")
for coding in ("gzip", "deflate"):
    answer = client.infer("as f4", [given(http, "input", large)], response_compression_algorithm=coding)
    assert (answer.as_numpy("output") == large).all()

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


ASKS = list(every_way(http))


def several(n):
    """Some of them, by a client of its own: it is for one thread."""
    own = http.InferenceServerClient(URL)
    for (of, more), array in ASKS[n::64]:
        check(own.infer(*of, **more), array)


with ThreadPoolExecutor(64) as pool:
    assert len(list(pool.map(several, range(64)))) == 64


async def main():
    async with aio.InferenceServerClient(URL) as client:
        assert await client.is_server_live() and await client.is_model_ready("sums")
        asks = list(every_way(aio))
        for start in range(0, len(asks), 64):
            some = asks[start : start + 64]
            answers = await asyncio.gather(*(client.infer(*of, **more) for (of, more), _ in some))
            for answer, (_, array) in zip(answers, some, strict=True):
                check(answer, array)


asyncio.run(main())

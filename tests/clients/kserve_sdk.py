"""What the SDK of KServe asks of the services of test_v2_clients.py, and what it gets.

python tests/clients/kserve_sdk.py HOST:PORT    in an environment with kserve
"""

import asyncio
import sys
from itertools import product

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL = f"http://{sys.argv[1]}"


def request(model, name, array, datatype, binary):
    tensor = InferInput(name=name, shape=list(array.shape), datatype=datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], parameters={"binary_data_output": binary})


DATATYPES = {"bool": "BOOL", "f2": "FP16", "f4": "FP32", "f8": "FP64"}
DATATYPES |= {f"{kind}{n}": f"{name}{8 * n}" for kind, name in (("i", "INT"), ("u", "UINT")) for n in (1, 2, 4, 8)}


def every_way():
    for dtype, n, binary in product(DATATYPES, (1, 4, 12), (True, False)):
        if binary or dtype != "f2":  # of which the SDK writes no JSON
            yield dtype, n, binary


async def echoed(client, dtype, n, binary):
    array = np.random.default_rng(n).integers(0, 2, (n, 3)).astype(dtype)
    asked = request(f"as {dtype}", "input", array, DATATYPES[dtype], binary)
    answer = await client.infer(URL, asked, model_name=f"as {dtype}")
    got = answer.outputs[0].as_numpy()
    assert (got == array).all() and got.shape == array.shape and got.dtype == array.dtype, (got, array)


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=10))
    assert await client.is_server_live(URL) and await client.is_server_ready(URL)
    assert await client.is_model_ready(URL, "sums")
    array = np.float32([[1, 2, 3], [4, 5, 6.5]])
    for binary in (True, False):
        answer = await client.infer(URL, request("as f4", "input", array, "FP32", binary), model_name="as f4")
        assert (answer.outputs[0].as_numpy() == array).all()
        asked = request("upper", "x", np.array([b"a", b"b"], object), "BYTES", binary)
        texts = await client.infer(URL, asked, model_name="upper")
        assert [text.decode() if isinstance(text, bytes) else text for text in texts.outputs[0].as_numpy()] == [
            "A",
            "B",
        ]
    await asyncio.gather(*(echoed(client, *way) for way in every_way()))
    try:
        await client.infer(URL, request("as f4", "input", array[:, :2], "FP32", True), model_name="as f4")
    except httpx.HTTPStatusError as error:
        assert "expected FP32 [n, 3], got FP32 [2, 2]" in str(error), error
    else:
        raise AssertionError("a wrong shape was taken")


asyncio.run(main())

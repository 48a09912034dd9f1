"""What the SDK of KServe asks of the services of test_v2_clients.py, and what it gets.

python tests/clients/kserve_sdk.py HOST:PORT    in an environment with kserve
"""

import asyncio
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL = f"http://{sys.argv[1]}"


def request(model, name, array, datatype, binary):
    tensor = InferInput(name=name, shape=list(array.shape), datatype=datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], parameters={"binary_data_output": binary})


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
    try:
        await client.infer(URL, request("as f4", "input", array[:, :2], "FP32", True), model_name="as f4")
    except httpx.HTTPStatusError as error:
        assert "expected FP32 [n, 3], got FP32 [2, 2]" in str(error), error
    else:
        raise AssertionError("a wrong shape was taken")


asyncio.run(main())

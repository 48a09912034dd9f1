"""What the SDK of KServe asks over gRPC of the services of test_v2_clients.py, and what it gets.

python tests/clients/kserve_grpc.py HOST:PORT    in an environment with kserve

Over gRPC it has no metadata, no streams and no BF16, and it writes no contents of FP16: so these are not asked here.
"""

import asyncio
import logging
import sys
from itertools import product

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferOutput, InferRequest
from kserve.errors import InvalidInput
from kserve.protocol.infer_type import RequestedOutput

URL = sys.argv[1]
DATATYPES = {"bool": "BOOL", "f2": "FP16", "f4": "FP32", "f8": "FP64"}
DATATYPES |= {f"{kind}{n}": f"{name}{8 * n}" for kind, name in (("i", "INT"), ("u", "UINT")) for n in (1, 2, 4, 8)}


def request(model, name, array, datatype, is_raw, **more):
    tensor = InferInput(name=name, shape=list(array.shape), datatype=datatype)
    if is_raw:
        tensor.set_data_from_numpy(array, binary_data=True)
    else:
        tensor.data = array.ravel().tolist()
    return InferRequest(model_name=model, infer_inputs=[tensor], **more)


async def refused(call, status, says):
    try:
        await call
    except grpc.RpcError as error:
        assert error.code() is getattr(grpc.StatusCode, status) and says in error.details(), error
    else:
        raise AssertionError(f"{says}: was taken")


async def echoed(client, dtype, n, is_raw):
    array = np.random.default_rng(n).integers(0, 2, (n, 3)).astype(dtype)
    asked = request(f"as {dtype}", "input", array, DATATYPES[dtype], is_raw, request_id="7")
    answer = await client.infer(asked)
    got = answer.outputs[0].as_numpy()
    assert (got == array).all() and got.shape == array.shape and got.dtype == array.dtype, (dtype, got, array)
    assert answer.id == "7" and answer.model_name == f"as {dtype}"


async def main():
    logging.disable()  # each refusal is logged with its traceback
    async with InferenceGRPCClient(URL, retries=0) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("sums") and not await client.is_model_ready("none")
        ways = [way for way in product(DATATYPES, (1, 4, 12), (True, False)) if way[0] != "f2" or way[2]]
        await asyncio.gather(*(echoed(client, *way) for way in ways))
        try:  # there are no contents of FP16, and the SDK knows
            request("as f2", "input", np.zeros((1, 3), "f2"), "FP16", False).to_grpc()
        except InvalidInput as error:
            assert "invalid input datatype" in str(error), error
        else:
            raise AssertionError("contents of FP16 were written")
        texts = np.array([b"a", "\u00e4".encode(), b""], object)
        for is_raw in (True, False):
            answer = await client.infer(request("upper", "any", texts, "BYTES", is_raw))
            got = [text.decode() for text in answer.outputs[0].as_numpy()]
            assert got == ["A", "\u00c4", ""], got
        array = np.float32([[1, 2, 3]])
        both = InferRequest(
            model_name="sums",
            infer_inputs=[
                *request("", "b", np.int64([1, 2]), "INT64", True).inputs,
                *request("", "a", np.float32([[1, 2], [3, 4]]), "FP32", True).inputs,
            ],
            request_outputs=[RequestedOutput("sum")],
        )
        (output,) = (await client.infer(both)).outputs
        assert isinstance(output, InferOutput) and output.name == "sum" and output.as_numpy().tolist() == [4, 9]

        await refused(client.infer(request("none", "x", array, "FP32", True)), "NOT_FOUND", "model 'none'")
        wrong = request("as f4", "input", array[:, :2], "FP32", True)
        await refused(client.infer(wrong), "INVALID_ARGUMENT", "expected FP32 [n, 3], got FP32 [1, 2]")
        wrong = request("as i1", "input", np.int64([[1, 300, 3]]), "INT8", False)
        await refused(client.infer(wrong), "INVALID_ARGUMENT", "expected INT8, got 300")
        try:  # by its own clock; a service that knows by then how long its batches take refuses it at once
            await client.infer(request("late", "input", array, "FP32", True), timeout=0.2)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE), error
        else:
            raise AssertionError("an answer of 1 s came within 0.2 s")
        head = (("x-request-id", "mine"),)
        assert (await client.infer(request("as f4", "input", array, "FP32", True), headers=head)).outputs
        timed = request("as f4", "input", array, "FP32", True, parameters={"timeout": 1})
        await refused(client.infer(timed), "DEADLINE_EXCEEDED", "no answer within 1e-06 s")


asyncio.run(main())

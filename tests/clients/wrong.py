"""Requests as tritonclient writes them, broken in every way: each answer is a 4xx, or a 501, in the form of V2.

python tests/clients/wrong.py HOST:PORT    in an environment with tritonclient
"""

import http.client
import json
import struct
import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

LENGTH = "Inference-Header-Content-Length"
connection = http.client.HTTPConnection(sys.argv[1], timeout=20)
seen = 0


def tensor(name, array, datatype, binary=True):
    given = InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def written(*tensors, outputs=None):
    """A head as an object, and the bytes behind it."""
    body, length = InferenceServerClient.generate_request_body(list(tensors), outputs=outputs)
    return json.loads(body[:length]), bytes(body[length:] if length else b"")


def post(model, head, blob=b"", length=None, headers=()):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    said = {LENGTH: str(len(text) if length is None else length)} if blob or length is not None else {}
    connection.request("POST", f"/v2/models/{model}/infer", text + blob, {**said, **dict(headers)})
    answer = connection.getresponse()
    return answer, answer.read()


def refused(model, head, blob=b"", status=400, **more):
    global seen
    answer, body = post(model, head, blob, **more)
    assert answer.status == status, (answer.status, body, head)
    assert answer.getheader("content-type") == "application/json", answer.getheaders()
    said = json.loads(body)
    assert list(said) == ["error"] and isinstance(said["error"], str) and said["error"], said
    seen += 1


def changed(head, **members):
    """The same head, whose first tensor has other members; None: it has not."""
    first = {name: value for name, value in {**head["inputs"][0], **members}.items() if value is not None}
    return {**head, "inputs": [first, *head["inputs"][1:]]}


FLOATS = np.float32([[1, 2, 3], [4, 5, 6]])
in_bytes, blob = written(tensor("input", FLOATS, "FP32"))
in_json, _ = written(tensor("input", FLOATS, "FP32", False))
assert post("as%20f4", in_bytes, blob)[0].status == 200 and post("as%20f4", in_json)[0].status == 200

for model in ("none", "as%20f4x", "as%20f4/versions/2", "as%20f4/versions/1/x"):
    refused(model, in_bytes, blob, 404)
for name in ("", "x", "Input", "input ", 7, None, [], {}):
    refused("as%20f4", changed(in_bytes, name=name), blob)
for datatype in ("FP64", "FP16", "INT32", "BYTES", "BOOL", "BF16", "fp32", "", 7, None, []):
    refused("as%20f4", changed(in_bytes, datatype=datatype), blob)
    refused("as%20f4", changed(in_json, datatype=datatype))
huge = [1 << 31, 1 << 32, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -1, -(1 << 63)]
shapes = [[], [6], [2, 3, 1], [3, 2], [1, 3], [3, 3], [0, 3], [2, 0], [2.5, 3], ["2", 3], [True, 3], "2", 2, None, {}]
for shape in [*shapes, *([n, 3] for n in huge), *([2, n] for n in huge), [1 << 32, 1 << 32, 1 << 32]]:
    refused("as%20f4", changed(in_bytes, shape=shape), blob)
    refused("as%20f4", changed(in_json, shape=shape))
for size in (0, 1, 23, 25, 48, -1, 1.5, "24", True, [], *huge):
    refused("as%20f4", changed(in_bytes, parameters={"binary_data_size": size}), blob)
for cut in range(len(blob)):
    refused("as%20f4", in_bytes, blob[:cut])
refused("as%20f4", in_bytes, blob + b"x")
text = len(json.dumps(in_bytes))
for length in (0, 1, text - 1, text + 1, text + 24, text + 25, 1 << 62, 1 << 63, 10**30, -1, "", "x", "1.5", "0x1f"):
    refused("as%20f4", in_bytes, blob, length=length)
refused("as%20f4", json.dumps(in_bytes).encode() + blob)  # without the length
for value in (b"NaN", b"Infinity", b"-Infinity", b"1e39", b"null", b"true", b'"1"', b"[1]", b"{}", b"01", b"1.", b""):
    refused("as%20f4", json.dumps(in_json).encode().replace(b"1.0", value))
for data in ([], [1] * 5, [1] * 7, [[1, 2, 3]], [[1, 2], [3, 4, 5, 6]], [[1, 2, 3], [4, 5, "6"]], 7, "x", {}, None):
    refused("as%20f4", changed(in_json, data=data))
for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"inputs":{}}', b'{"inputs":[]}', b'{"inputs":[7]}', b"[" * 5000):
    refused("as%20f4", body)
refused("as%20f4", {"inputs": in_json["inputs"] * 2})
for outputs in ([{"name": "no"}], [{"name": 7}], [{}], [7], {}, "output", 7):
    refused("as%20f4", {**in_json, "outputs": outputs})
for name in ("id", "parameters"):
    for value in (7, [], True):
        refused("as%20f4", {**in_json, name: value})
for timeout in (-1, 1.5, "1", [], 1 << 62):
    refused("as%20f4", {**in_json, "parameters": {"timeout": timeout}})
wanted = [InferRequestedOutput("output", class_count=2)]
refused("as%20f4", written(tensor("input", FLOATS, "FP32", False), outputs=wanted)[0], status=501)
shared = {"shared_memory_region": "a", "shared_memory_byte_size": 24}
refused("as%20f4", changed(in_json, data=None, parameters=shared), status=501)

both, ab = written(tensor("a", FLOATS[:, :2].copy(), "FP32"), tensor("b", np.int64([1, 2]), "INT64"))
for inputs in (both["inputs"][:1], both["inputs"][1:], [*both["inputs"], both["inputs"][0]], [both["inputs"][0]] * 2):
    size = sum(given["parameters"]["binary_data_size"] for given in inputs)
    refused("sums", {"inputs": inputs}, (ab * 2)[:size])
refused("sums", changed(both, shape=[1, 2], parameters={"binary_data_size": 8}), ab[8:])

texts, lengths = written(tensor("any", np.array([b"ab", b"c"], object), "BYTES"))
size = texts["inputs"][0]["parameters"]["binary_data_size"]
for at in (0, 6):
    for length in (*range(1 if at else 3, 9), 100, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        if (at, length) != (6, 1):
            refused("upper", texts, lengths[:at] + struct.pack("<I", length) + lengths[at + 4 :])
for shape in ([0], [1], [3], [2, 2], [1 << 61], [1 << 63], [2, 1 << 61]):
    refused("upper", changed(texts, shape=shape), lengths)
for cut in range(size):
    refused("upper", changed(texts, parameters={"binary_data_size": cut}), lengths[:cut])
refused("upper", changed(texts, parameters=None, data=["a", 1]))
refused("upper", changed(texts, parameters=None, data=[1, 2]))

for coding in ("br", "zstd", "gzip, br"):
    refused("as%20f4", in_bytes, blob, 415, headers=[("Content-Encoding", coding)])
for coding in ("gzip", "deflate"):
    refused("as%20f4", in_bytes, blob, headers=[("Content-Encoding", coding)])

assert post("as%20f4", in_bytes, blob)[0].status == 200 and seen > 200, seen

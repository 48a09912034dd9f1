"""Requests of the Open Inference Protocol, as its clients write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from kit.asks import ask_direct
from virtex.service.v2 import datatype_of


def tensor(name: str, array: Any, binary: bool = False, nested: bool = False) -> tuple[dict[str, Any], bytes]:
    """A tensor of a request, and its bytes. array: of NumPy, or a list of bytes."""
    if isinstance(array, list):
        blob = b"".join(len(text).to_bytes(4, "little") + text for text in array)
        data = None if binary else [text.decode() for text in array]
        said = {"name": name, "datatype": "BYTES", "shape": [len(array)]}
    else:
        blob, data = array.tobytes(), (array if nested else array.ravel()).tolist()
        said = {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
    if binary:
        return {**said, "parameters": {"binary_data_size": len(blob)}}, blob
    return {**said, "data": data}, b""


def body_of(*tensors: tuple[dict[str, Any], bytes], **members: Any) -> tuple[bytes, bytes]:
    """The head and the bytes behind it."""
    return orjson.dumps({"inputs": [said for said, _ in tensors], **members}), b"".join(blob for _, blob in tensors)


def infer(app: Any, *tensors: Any, ask: Any = ask_direct, path: str = "", headers: Any = (), **members: Any) -> Any:
    """Ask the model of an app."""
    return sent(app, *body_of(*tensors, **members), ask=ask, path=path, headers=headers)


def sent(app: Any, head: bytes, blob: bytes = b"", ask: Any = ask_direct, path: str = "", headers: Any = ()) -> Any:
    """The same, of a body that is made by hand."""
    length = [(b"inference-header-content-length", b"%d" % len(head))] if blob else []
    return ask(app, head + blob, path=path or f"/v2/models/{app.name}/infer", headers=[*length, *headers])


def outputs_of(answer: Any) -> dict[str, Any]:
    """The tensors of an answer by their names: arrays, or lists of bytes."""
    assert answer.status == 200, answer.body
    length = int(answer.headers.get(b"inference-header-content-length", len(answer.body)))
    head, blob = orjson.loads(answer.body[:length]), answer.body[length:]
    found = {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        data, blob = (None, blob) if size is None else (blob[:size], blob[size:])
        found[output["name"]] = _value(output, data)
    assert not blob
    return found


def _value(output: dict[str, Any], data: bytes | None) -> Any:
    if output["datatype"] == "BYTES":
        return _texts(data) if data is not None else [text.encode() for text in output["data"]]
    if output["datatype"] == "BF16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        from virtex.service.v2 import DTYPES

        dtype = DTYPES[output["datatype"]]
    array = np.frombuffer(data, dtype) if data is not None else np.array(output["data"], dtype)
    return array.reshape(output["shape"])


def _texts(data: bytes) -> list[bytes]:
    texts = []
    while data:
        size = int.from_bytes(data[:4], "little")
        texts.append(data[4 : 4 + size])
        data = data[4 + size :]
    return texts


def error_of(answer: Any) -> str:
    """What an answer says went wrong, in the form of V2 to the letter."""
    assert answer.status >= 400 and answer.headers[b"content-type"] == b"application/json"
    assert list(answer.json) == ["error"] and answer.json["error"]
    return answer.json["error"]

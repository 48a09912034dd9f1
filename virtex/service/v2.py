"""The Open Inference Protocol, V2: its paths, its errors, its datatypes, and what it answers without a body.

    GET  /v2, /v2/health/live, /v2/health/ready
    GET  /v2/models/{name}[/versions/1], and /ready below
    POST /v2/models/{name}[/versions/1]/infer

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. Rules: values and functions
of them; it knows tensors and heads, neither a queue nor a loop. v2_read.py and v2_write.py have the bodies of infer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from .. import __version__
from ..errors import RequestError, VirtexError, quoted
from ..tensor import Tensor
from .seam import JSON, Response

ROOT = "/v2"
MODELS = "/v2/models/"
HEALTH = "/v2/health/"
VERSION = "1"
INPUT, OUTPUT, DATA = "input", "output", "data"  # names of tensors that have none; DATA: those of a list handler
TEXT = "BYTES"
TEXTS = {"name": DATA, "datatype": TEXT, "shape": [-1]}  # the one tensor of a list handler

_DTYPES = {
    "BOOL": "bool",
    "UINT8": "u1",
    "UINT16": "u2",
    "UINT32": "u4",
    "UINT64": "u8",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "FP16": "f2",
    "FP32": "f4",
    "FP64": "f8",
}
DTYPES = {datatype: np.dtype(name) for datatype, name in _DTYPES.items()}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}


def is_v2(path: str) -> bool:
    """Whether clients of this protocol ask there: their errors have its form."""
    return path.startswith("/v2/") or path == ROOT


def refusal(error: VirtexError) -> Response:
    """An error in the form of V2: {"error": reason}. An item that is refused is a 400, for there is no 422."""
    status = 400 if error.status == 422 else error.status
    return Response(status, JSON + error.headers, [json.dumps({"error": str(error) or "refused"}).encode()])


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """The datatype of an array's values; None where V2 has none. Of objects: they are texts."""
    known = _DATATYPES.get(dtype)
    if known is None:
        if dtype.name == "bfloat16":
            return "BF16"
        known = TEXT if dtype.kind in "OSU" else _DATATYPES.get(dtype.newbyteorder("="))
    return known


def of_model(path: str, name: str) -> str | None:
    """What a path asks of the model of that name: "", "/ready" or "/infer", say; None where it asks another one."""
    rest = path.removeprefix(MODELS)
    if rest == path or not rest.startswith(name) or (rest[len(name) :] and rest[len(name)] != "/"):
        return None
    rest = rest[len(name) :]
    if rest.startswith("/versions/"):
        version, slash, after = rest.removeprefix("/versions/").partition("/")
        return slash + after if version == VERSION else None
    return rest


def asked_of(path: str, name: str) -> str:
    """The same. Raises RequestError (404) where it is of no such model."""
    found = of_model(path, name)
    if found is None:
        raise unknown(path, [name])
    return found


def unknown(path: str, names: list[str]) -> RequestError:
    """The answer to a path where nothing is. names: of the models that there are."""
    for name in names:
        asked = of_model(path, name)
        if asked:
            return RequestError(404, f"model {name!r} has no {quoted(asked)}: expected /infer or /ready")
    if path.startswith(MODELS):
        return RequestError(404, f"{quoted(path)} is of no model: expected {', '.join(names)}, version {VERSION}")
    return RequestError(404, f"nothing at {quoted(path)}")


def server_metadata() -> bytes:
    """What GET /v2 says."""
    return orjson.dumps({"name": "virtex", "version": __version__, "extensions": ["binary_tensor_data"]})


def described(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Declared tensors as metadata has them: -1 for the items of a batch."""
    return [described_as(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]


def described_as(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """One of them. shape: of an item."""
    return {"name": name, "datatype": datatype_of(dtype) or str(dtype), "shape": [-1, *shape]}


def named(tensors: Tensor | Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors by name. name: of the only one, where it has none."""
    return {name: tensors} if isinstance(tensors, Tensor) else dict(tensors)

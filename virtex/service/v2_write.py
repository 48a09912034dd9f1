"""What the answer to a request of V2 is made of: the tensors of its outputs, as JSON or as bytes behind the JSON.

    {"model_name": ..., "model_version": "1", "id": ..., "outputs": [{"name", "datatype", "shape", "data": [...]}]}
    header Inference-Header-Content-Length where bytes follow, "parameters": {"binary_data_size": n} for their tensors

Source: as of v2.py, and Triton's extension_binary_data.md. Rules: as of formats.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from .._codec import flat_numbers
from ..batch.outputs import Rows
from ..errors import Headers, RequestError, VirtexError
from ..message import Content, encode_data
from ..serial._json import check_text
from . import v2
from .formats import Format
from .seam import JSON, Response
from .v2 import OUTPUT

_BINARY: Headers = ((b"content-type", b"application/octet-stream"),)
LENGTH = b"inference-header-content-length"  # of the JSON ahead of bytes; a request has it too
DEEP = 32  # dimensions that any NumPy takes


class Texts:
    """A tensor of BYTES. values: in C order."""

    def __init__(self, values: list[bytes], shape: tuple[int, ...]) -> None:
        self.values = values
        self.shape = shape

    def blob(self) -> bytes:
        """Each behind its length, in four bytes."""
        return b"".join([len(value).to_bytes(4, "little") + value for value in self.values])

    def json(self) -> bytes:
        """A list of strings. Raises UnicodeDecodeError for what is no UTF-8."""
        return orjson.dumps([value.decode() for value in self.values])


class V2(Format):
    """Whatever the protocol has to say, its errors are these."""

    name = "V2"

    def refuse(self, error: VirtexError) -> Response:
        """What went wrong."""
        return v2.refusal(error)


REFUSING = V2()


class Asked(V2):
    """How a request wants its answer.

    served: its model. id: None for none. outputs: their names, and whether each is to be bytes; None for all that there
    are. binary: whether those are to be bytes.
    """

    def __init__(self, served: Any, id: str | None, outputs: dict[str, bool] | None, binary: bool) -> None:  # noqa: A002
        self._served = served
        self._outputs = outputs
        self._binary = binary
        head = b'{"model_name":%b,"model_version":"%b"' % (orjson.dumps(served.name), v2.VERSION.encode())
        self._lead = head + (b"" if id is None else b',"id":%b' % orjson.dumps(id)) + b',"outputs":['
        self._known: dict[str, Known] = {}
        self._latest_length = -1
        self._latest_headers: Headers = ()

    def reply(self, rows: Any, in_numbers: bool = False) -> Response:
        """The outputs that were asked for. Raises RequestError: 400 for one that there is not, 501 for a dtype that V2
        has not; HandlerError for rows that can't be sent."""
        if type(rows) is list:
            return self._answer({v2.DATA: tensor_of(rows)})
        given: Rows = rows
        if self._served.outputs is None:
            self._served.learn(given.arrays())
        return self._answer(given.arrays(OUTPUT))

    def content(self, content: Content) -> Response:
        """The answer that is one Content: its bytes."""
        return self._answer({v2.DATA: Texts([content.body], (1,))})

    def _answer(self, tensors: dict[str, Any]) -> Response:
        wanted = self._outputs
        names: dict[str, Any] = tensors if wanted is None else wanted
        text, pieces, blobs = self._lead, [], []
        left = len(names)
        for name in names:
            left -= 1
            tensor = tensors.get(name)
            if tensor is None:
                raise RequestError(400, f"outputs: there is no {name!r}; expected one of {', '.join(tensors)}")
            known = self._known_of(name, tensor)
            if self._binary if wanted is None else wanted[name]:
                blob = blob_of(known, tensor)
                text += known.text + b',"parameters":{"binary_data_size":%d}}' % len(blob) + (b"," if left else b"]}")
                blobs.append(blob)
            else:
                pieces.append(_in_json(known, tensor, text + known.begun, b"]}," if left else b"]}]}"))
                text = b""
        if text:
            pieces.append(text if names else text + b"]}")
        return Response(200, self._headers_of(sum(map(len, pieces))) if blobs else JSON, pieces + blobs)

    def _headers_of(self, length: int) -> Headers:
        """Of an answer with bytes behind a head of that length: the same for the same, by which the wire knows them."""
        if length != self._latest_length:
            self._latest_length = length
            self._latest_headers = (*_BINARY, (LENGTH, b"%d" % length))
        return self._latest_headers

    def _known_of(self, name: str, tensor: Any) -> Known:
        """What stands ahead of a tensor's data: that of the last one of its name, where nothing else has come since."""
        dtype = None if type(tensor) is Texts else tensor.dtype
        shape = tensor.shape
        known = self._known.get(name)
        if known is None or known.dtype is not dtype or known.shape != shape:
            known = self._known[name] = Known(name, dtype, shape)
        return known


class Known:
    """What stands ahead of the data of a tensor of that dtype, None for Texts, and shape: text, and begun, in JSON.

    Raises RequestError (501) for a dtype that V2 has not.
    """

    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        datatype = v2.TEXT if dtype is None else v2.datatype_of(dtype)
        if datatype is None:
            raise RequestError(501, f"output {name!r} is of {dtype}, for which V2 has no datatype")
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.is_text = datatype == v2.TEXT
        self.is_little = self.is_text or dtype == dtype.newbyteorder("<")
        self.text = orjson.dumps({"name": name, "datatype": datatype, "shape": shape})[:-1]
        self.begun = self.text + b',"data":['


def blob_of(known: Known, tensor: Any) -> bytes:
    """Its values in C order, the lowest byte first."""
    if known.is_text:
        texts: Texts = tensor if known.dtype is None else _texts_of(tensor)
        return texts.blob()
    values: bytes = (tensor if known.is_little else tensor.astype(known.dtype.newbyteorder("<"))).tobytes()
    return values


def _in_json(known: Known, tensor: Any, head: bytes, tail: bytes) -> bytes:
    if known.is_text:
        texts = tensor if known.dtype is None else _texts_of(tensor)
        try:
            return head[:-1] + texts.json() + tail[1:]
        except UnicodeDecodeError:
            raise RequestError(400, f"output {known.name!r} is no UTF-8: ask for it with binary_data") from None
    try:
        text = flat_numbers(tensor, head, tail)
    except ValueError:  # a number is not finite, of which orjson makes null, and clients of V2 a NaN
        values = tensor.ravel()
        text = (
            head
            + orjson.dumps(values.astype("f4") if values.dtype.itemsize == 2 else values, None, _NUMPY)[1:-1]
            + tail
        )
    assert text is not None  # all dtypes of V2 are written
    return text


_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def _texts_of(array: Any) -> Texts:
    """An array of text."""
    if array.dtype.kind == "U":
        check_text(array)
    values = [value.encode() if isinstance(value, str) else value for value in array.ravel().tolist()]
    return Texts(values, array.shape)


# ---- the rows of a list handler


def tensor_of(rows: list[Any]) -> Any:
    """One tensor of what process_response() gave: of arrays or numbers an array, of text or any other JSON BYTES.

    Raises HandlerError for what can't be sent.
    """
    are_arrays = all(
        isinstance(row, np.ndarray) and not row.dtype.hasobject and v2.datatype_of(row.dtype) for row in rows
    )
    if are_arrays and len({(row.dtype, row.shape) for row in rows}) == 1:
        return np.stack(rows)
    found = _tensor(rows)  # as they are: JSON has no numbers that are not finite
    if found is None:
        values = orjson.loads(encode_data(rows))
        found = _tensor(values)
        if found is None:
            found = Texts([orjson.dumps(value) for value in values], (len(values),))
    return found


def _tensor(values: list[Any]) -> Any:
    """Texts, or an array, of texts or numbers in lists of one shape; None for anything else."""
    leaves: list[Any] = []
    shape = _shape_of(values)
    if not _flatten(values, shape, 0, leaves):
        return None
    leaves = list(map(_plain, leaves))
    kinds = set(map(type, leaves))
    if kinds == {str}:
        return Texts([leaf.encode() for leaf in leaves], shape)
    if kinds == {bool} or (kinds and kinds <= {int, float}):
        array = np.array(leaves)
        if array.dtype in (np.bool_, np.int64, np.uint64) or (float in kinds and array.dtype == np.float64):
            return array.reshape(shape)
    return None


def _plain(leaf: Any) -> Any:
    """A float of NumPy as JSON has it, if it is finite."""
    if isinstance(leaf, (np.float16, np.float32)):
        return float(str(np.float32(leaf)))
    return float(leaf) if type(leaf) is np.float64 else leaf


def _shape_of(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list) and len(shape) < DEEP:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _flatten(value: Any, shape: tuple[int, ...], depth: int, leaves: list[Any]) -> bool:
    """Whether lists are of that shape; then what is in them is in `leaves`."""
    if depth == len(shape):
        leaves.append(value)
        return not isinstance(value, (list, dict))
    if not isinstance(value, list) or len(value) != shape[depth]:
        return False
    return all(_flatten(one, shape, depth + 1, leaves) for one in value)

"""A ModelInferResponse: what the answer to a ModelInferRequest is made of; and what is said in place of one.

    model_name 1 | model_version 2 | id 3 | parameters 4 | outputs 5 ... | raw_output_contents 6 ...

Rules: as of service/v2_write.py, whose Asked chooses the tensors. Their bytes are copied once, from the rows into the
answer.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from ..errors import RequestError, VirtexError
from ..service import v2
from ..service.seam import Response
from ..service.v2_write import V2, Asked, Known, Texts, blob_of
from .cut import length_of
from .messages import InferResponse, Tensor

_OUTPUT, _RAW = b"\x2a", b"\x32"  # tags: outputs, raw_output_contents
_AS_IT_IS = "biuf" if sys.byteorder == "little" else ""  # kinds of dtypes whose memory is what is sent


def refused(error: VirtexError) -> Response:
    """What went wrong, as text. An item that is refused is a 400, as by REST."""
    status = 400 if error.status == 422 else error.status
    return Response(status, error.headers, [(str(error) or "refused").encode()])


class Refusing(V2):
    """How it is said that there is no answer."""

    def refuse(self, error: VirtexError) -> Response:
        """What went wrong."""
        return refused(error)


class Answer(Asked):
    """How a request wants its answer. served: its model. id: of the request. wanted: names of outputs; () for all."""

    def __init__(self, served: Any, id: bytes, wanted: tuple[str, ...]) -> None:  # noqa: A002
        super().__init__(served, None, None, True)
        self._model = served
        self._wanted = wanted
        self._head = _named(served.name) + (b"\x1a" + length_of(len(id)) + id if id else b"")

    def with_id(self, id: bytes) -> Answer:  # noqa: A002
        """The same, of another request. Raises RequestError (400) for what is no UTF-8."""
        try:
            id.decode()
        except UnicodeDecodeError:
            raise RequestError(400, "id: expected UTF-8") from None
        return Answer(self._model, id, self._wanted)

    def refuse(self, error: VirtexError) -> Response:
        """What went wrong."""
        return refused(error)

    def _answer(self, tensors: dict[str, Any]) -> Response:
        said: list[Any] = [self._head]
        blobs: list[Any] = []
        for name in self._wanted or tensors:
            if name not in tensors:
                raise RequestError(400, f"outputs: there is no {name!r}; expected one of {', '.join(tensors)}")
            tensor = tensors[name]
            dtype = None if type(tensor) is Texts else tensor.dtype
            known, described = _described(name, dtype, tensor.shape)
            said.append(described)
            if dtype is not None and dtype.kind in _AS_IT_IS and dtype.isnative and tensor.flags.c_contiguous:
                blob, size = tensor, tensor.nbytes
            else:
                blob = blob_of(known, tensor)
                size = len(blob)
            blobs += (_RAW + length_of(size), blob)
        return Response(200, (), [b"".join(said + blobs)])


@lru_cache(256)
def _named(name: str) -> bytes:
    said: bytes = InferResponse(model_name=name, model_version=v2.VERSION).SerializeToString()
    return said


@lru_cache(256)
def _described(name: str, dtype: Any, shape: tuple[int, ...]) -> tuple[Known, bytes]:
    """An output without its bytes, and as a field. dtype: None for texts. Raises RequestError (501)."""
    known = Known(name, dtype, shape)
    datatype = v2.TEXT if known.is_text else v2.datatype_of(dtype)
    said: bytes = Tensor(name=name, datatype=datatype, shape=shape).SerializeToString()
    return known, _OUTPUT + length_of(len(said)) + said

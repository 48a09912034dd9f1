"""Calls of GRPCInferenceService, as a client that knows nothing of Virtex makes them."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

import grpc
import numpy as np

from virtex.rpc.messages import InferRequest, InferResponse
from virtex.service import v2

SERVICE = "/inference.GRPCInferenceService/"
CONTENTS = {"bool": "bool", "i1": "int", "i2": "int", "i4": "int", "u1": "uint", "u2": "uint", "u4": "uint"}
CONTENTS |= {"i8": "int64", "u8": "uint64", "f4": "fp32", "f8": "fp64"}


class Told(NamedTuple):
    """How a call ended. message: its answer; b"" without one."""

    code: str
    details: str
    metadata: dict[str, str]
    message: bytes = b""


def texts(*values: bytes) -> bytes:
    """A tensor of BYTES, as it travels."""
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def request(model: str, *arrays: Any, name: str = "input", **members: Any) -> Any:
    """An infer request. arrays: (name, array), or one array of that name; of bytes a list."""
    asked = InferRequest(model_name=model, **members)
    for given in arrays:
        named, array = given if isinstance(given, tuple) else (name, given)
        if isinstance(array, list):
            asked.inputs.add(name=named, datatype="BYTES", shape=[len(array)])
            asked.raw_input_contents.append(texts(*array))
        else:
            asked.inputs.add(name=named, datatype=v2.datatype_of(array.dtype), shape=array.shape)
            asked.raw_input_contents.append(array.tobytes())
    return asked


def odd_call(port: int, path: bytes, *headers: tuple[bytes, bytes]) -> None:
    """A call that no client of gRPC makes, without a message; returns when it has ended.

    HTTP/2 by hand: a header is a literal, neither indexed nor compressed (RFC 7541 section 6.2.2), of less than 127
    bytes.
    """

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    usual = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a"))
    block = b""
    for header in (*usual, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *headers):
        block += b"\0" + b"".join(bytes([len(text)]) + text for text in header)
    said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block) + frame(0, 1, 1, b"")
    with socket.create_connection(("127.0.0.1", port), 60) as sock, sock.makefile("rb") as file:
        sock.sendall(said)
        kind = flags = 0
        while kind != 3 and not (kind == 1 and flags & 1):  # RST_STREAM, or headers with END_STREAM
            head = file.read(9)
            assert len(head) == 9, "the server ended the connection and not the call"
            kind, flags = head[3], head[4]
            file.read(int.from_bytes(head[:3], "big"))


def outputs_of(message: bytes) -> dict[str, Any]:
    """The tensors of an answer: arrays, or lists of bytes."""
    answer, found = InferResponse.FromString(message), {}
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            values = []
            while raw:
                size = int.from_bytes(raw[:4], "little")
                values.append(raw[4 : 4 + size])
                raw = raw[4 + size :]
            found[output.name] = values
        else:
            dtype = v2.DTYPES.get(output.datatype) or np.dtype("bfloat16")
            found[output.name] = np.frombuffer(raw, dtype).reshape(output.shape)
    return found


def _pairs(metadata: Any) -> dict[str, str]:
    return {name: value for name, value in metadata or ()}  # noqa: C416 (dict() of old metadata has another idea)


class Client:
    """A channel to a port."""

    def __init__(self, port: int, *options: tuple[str, Any]) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)

    async def ask(self, message: Any = b"", method: str = "ModelInfer", **more: Any) -> Told:
        """Call a method. message: bytes, or of protobuf. more: metadata and timeout."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        call = self.channel.unary_unary(SERVICE + method)(body, **more)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            return Told(error.code().name, error.details() or "", _pairs(error.trailing_metadata()))
        return Told("OK", "", _pairs(await call.trailing_metadata()), answer)

    async def infer(self, asked: Any, **more: Any) -> dict[str, Any]:
        """The tensors of an answer that has to come."""
        told = await self.ask(asked, **more)
        assert told.code == "OK", told
        return outputs_of(told.message)

    async def close(self) -> None:
        await self.channel.close()

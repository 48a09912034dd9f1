"""Arrow IPC streams: batch -> base64, and back, where the sender is not trusted.

Rules: knows Arrow, not pandas. A stream is looked through before pyarrow opens it: compressed buffers would take any
amount of memory, and extension types run whatever some library registered for them.

Format: https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format, and the flatbuffers of Message.fbs.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa

from .._codec import decode_block, encode_pieces
from ..errors import ItemError, quoted
from ._pickles import refuse_pickle

EXPECTED = "the base64 of an Arrow IPC stream"
AMPLIFIED = 4  # as many bytes may the columns have for each one of the stream; two columns may share a dictionary

_CONTINUES = 0xFFFFFFFF
_DICTIONARY, _RECORDS = 2, 3  # of the union MessageHeader
_HEADER_TYPE, _HEADER, _LENGTH = 1, 2, 3  # the fields of a Message
_DATA, _COMPRESSION = 1, 3  # of a DictionaryBatch, of a RecordBatch

_FLAT = ["is_primitive", "is_decimal", "is_fixed_size_binary", "is_string", "is_large_string"]
_FLAT += ["is_binary", "is_large_binary"]
_NESTED = ("is_list", "is_large_list", "is_fixed_size_list", "is_struct", "is_map")


class _Pieces:
    """A file that keeps what is written to it, without a copy."""

    closed = False

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def write(self, piece: Any) -> int:
        self.pieces.append(piece)
        return len(piece)

    def writable(self) -> bool:
        return True

    def flush(self) -> None: ...

    def close(self) -> None: ...


def to_text(batch: Any) -> str:
    """The base64 of a stream of one batch."""
    sink = _Pieces()
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), batch.schema) as writer:
        writer.write_batch(batch)
    return encode_pieces(sink.pieces)


def _memory(bytestr: str | bytes) -> Any:
    """The bytes of a stream, writable and aligned to 64 bytes; of base64, or of what base64 has not, as they are."""
    if isinstance(bytestr, str) or bytes(bytestr[:1]) != b"\xff":
        return decode_block(bytestr)
    room = np.empty(len(bytestr) + 64, np.uint8)
    memory = room[-room.ctypes.data % 64 :][: len(bytestr)]
    memory[:] = np.frombuffer(bytestr, np.uint8)
    return memory


class Stream:
    """A stream's one batch, and the writable memory that its buffers are views of.

    Raises: ItemError, and whatever pyarrow does of a stream that is not valid.
    """

    def __init__(self, bytestr: str | bytes) -> None:
        self.memory = _memory(bytestr)
        refuse_pickle(self.memory[:2].tobytes(), EXPECTED)
        _check_messages(self.memory.data)
        buffer = pa.py_buffer(self.memory)
        self.address = buffer.address
        reader = pa.ipc.open_stream(buffer)
        for kind in set(reader.schema.types):
            check_type(kind)
        batches = list(reader)
        for batch in batches:
            batch.validate()  # before anything counts bytes: a length that is a lie would be read beyond the buffers
            _check_rows(batch)
        self._check_sizes(batches)
        for batch in batches:
            batch.validate(full=True)  # reads all values, of columns that share their bytes as often as they do
        self.batch = batches[0] if len(batches) == 1 else _joined(batches, reader.schema)

    def _check_sizes(self, batches: list[Any]) -> None:
        size = sum(column.nbytes for batch in batches for column in batch.columns)
        if size > AMPLIFIED * self.memory.nbytes:
            raise ItemError(f"expected columns of {self.memory.nbytes} bytes, as the stream has; got {size}")

    def offset(self, column: Any) -> int:
        """Where in the memory the values of a column of fixed width begin; -1 if they lie elsewhere."""
        buffer = column.buffers()[1]
        if buffer is None or column.null_count:
            return -1
        width = column.type.bit_width // 8
        start: int = buffer.address - self.address + column.offset * width
        return start if 0 <= start <= self.memory.nbytes - len(column) * width else -1


def _check_rows(batch: Any) -> None:
    if batch.num_rows > 8 * min((column.nbytes for column in batch.columns), default=0):
        raise ItemError(f"expected columns with bytes of their own, got {batch.num_rows} rows without")


def _joined(batches: list[Any], schema: Any) -> Any:
    """As one batch; of none an empty one."""
    table = pa.Table.from_batches(batches, schema=schema).combine_chunks()
    empty = [pa.array([], field.type) for field in schema]
    return (table.to_batches() or [pa.RecordBatch.from_arrays(empty, schema=schema)])[0]


def check_type(kind: Any) -> None:
    """Refuses the types of which few bytes are many values, and those that not every reader has."""
    types = pa.types
    if types.is_dictionary(kind):
        return check_type(kind.value_type)
    if types.is_fixed_size_binary(kind) and not kind.byte_width:
        raise ItemError(f"expected a type with values, got {quoted(kind)}")
    if any(getattr(types, nested)(kind) for nested in _NESTED):
        if not kind.num_fields or (types.is_fixed_size_list(kind) and not kind.list_size):
            raise ItemError(f"expected a type with values, got {quoted(kind)}")
        for i in range(kind.num_fields):
            check_type(kind.field(i).type)
    elif not any(getattr(types, flat)(kind) for flat in _FLAT):
        raise ItemError(f"the Arrow type {quoted(kind)} does not travel: convert it, as in a cast to what it stores")
    return None


# -- the stream, before Arrow reads it


def _check_messages(data: memoryview) -> None:
    at, end = 0, len(data)
    try:
        while at < end:
            marker, size = struct.unpack_from("<Ii", data, at)
            if marker != _CONTINUES or size < 0:
                raise ItemError(f"expected {EXPECTED}, got {bytes(data[at : at + 8])!r} where a message begins")
            if not size:
                return
            head = data[at + 8 : at + 8 + size]
            if not at and b"ARROW:extension:" in bytes(head):
                raise ItemError("expected plain Arrow types, got an extension type: send what it stores")
            at += 8 + size + _check_message(head)
    except struct.error:
        raise ItemError(f"expected {EXPECTED}, got the end or nonsense in the message at byte {at}") from None


def _check_message(head: memoryview) -> int:
    """How long the body is that follows."""
    message = _table(head, 0)
    kind = _field(head, message, _HEADER_TYPE, "<B")
    where = _place(head, message, _HEADER)
    if where and kind in (_DICTIONARY, _RECORDS):
        batch = _table(head, where)
        if kind == _DICTIONARY:
            batch = _table(head, _place(head, batch, _DATA))
        if _place(head, batch, _COMPRESSION):
            raise ItemError("expected an Arrow IPC stream without compression, got compressed buffers")
    length = _field(head, message, _LENGTH, "<q")
    if length < 0:
        raise ItemError(f"expected {EXPECTED}, got a body of {length} bytes")
    return length


def _table(head: memoryview, at: int) -> int:
    """Where the table begins to which the offset at this place points."""
    return at + int(struct.unpack_from("<I", head, at)[0])


def _place(head: memoryview, table: int, number: int) -> int:
    """Where a field of a table stands; 0 if it is not there. The table begins with the way back to its vtable."""
    vtable = table - struct.unpack_from("<i", head, table)[0]
    if vtable < 0:
        raise struct.error
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", head, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", head, vtable + slot)[0]
    return table + int(offset) if offset else 0


def _field(head: memoryview, table: int, number: int, kind: str) -> int:
    place = _place(head, table, number)
    return int(struct.unpack_from(kind, head, place)[0]) if place else 0

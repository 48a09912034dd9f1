"""A ModelInferRequest, cut: the bytes of its tensors stay where they are, and protobuf reads what stands around them.

    (tag, length, bytes)*    https://protobuf.dev/programming-guides/encoding

Rules: bytes in, places out. Clients send the same head again and again, but for its id: without both it is the same, so
what it says is kept (reading.py). Protobuf would copy a tensor twice on its way to the rows.
"""

from __future__ import annotations

from ..errors import RequestError

MOST_FIELDS = 4096  # inputs, outputs, parameters and tensors of a request; each takes half a microsecond

_NAME, _ID, _INPUT, _RAW = 0x0A, 0x1A, 0x2A, 0x3A  # tags: model_name, id, inputs, raw_input_contents
_NUMBER = 0x18  # of a shape whose numbers come one by one
_VARINT, _PIECE = 0, 2  # kinds of fields
_FLOATS, _DOUBLES = 0x32, 0x3A  # tags: many of them in one field
# The fields of contents, from bool_contents 1 to bytes_contents 8: one value each, and many
_VALUES = frozenset({0x08, 0x10, 0x18, 0x20, 0x28, 0x35, 0x39, 0x42, 0x0A, 0x12, 0x1A, 0x22, 0x2A, _FLOATS, _DOUBLES})
_OTHERS = frozenset({_NAME, 0x12, 0x22, _INPUT, 0x32})  # and model_version, parameters, outputs


class Cut:
    """What a message is made of. head: all but id and tensors. id: as it came. raws: where each tensor's bytes begin
    and end."""

    def __init__(self, head: bytes, id: bytes, raws: tuple[tuple[int, int], ...]) -> None:  # noqa: A002
        self.head = head
        self.id = id
        self.raws = raws


def cut(message: bytes) -> Cut | None:
    """Take a message apart; None where it breaks off, or has fields that are none of the protocol's: protobuf knows.

    Raises RequestError (413) for one that has too many fields.
    """
    size, at, start, left = len(message), 0, 0, MOST_FIELDS
    head, request_id, raws = [], b"", []
    try:
        while at < size:
            left -= 1
            if not left:
                raise RequestError(413, f"more than {MOST_FIELDS} fields in one request")
            tag, begin, length = message[at], at, message[at + 1]
            at += 2
            if length > 127:
                length, at = _varint(message, at - 1)
            end = at + length
            if tag in _OTHERS:
                at = end
                continue
            if tag == _RAW:
                raws.append((at, end))
            elif tag == _ID:
                request_id = message[at:end]
            else:
                return None
            if begin > start:
                head.append(message[start:begin])
            start = at = end
    except IndexError:
        return None
    if at != size:
        return None
    head.append(message[start:])
    return Cut(b"".join(head), request_id, tuple(raws))  # at once: a large piece would be copied for each small one


def counted(message: bytes, most_beside: int, most_values: int) -> tuple[int, int]:
    """The bytes of a message, as cut() takes it, that are neither id nor contents of inputs; and the values of these.

    It stops where either is more than its most. A field without values counts as one.
    """
    size, at, found, values = len(message), 0, 0, 0
    stop = until = 0  # the ends of the input, and of the contents in it, that are looked into
    try:
        while at < size and found <= most_beside and values <= most_values:
            begin, tag = at, message[at]
            at += 1
            if begin < until and tag in _VALUES:
                length, kind, there = 0, tag & 7, 0
                if kind == _PIECE:
                    length = message[at]
                    at += 1
                    if length > 127:
                        length, at = _varint(message, at - 1)
                end = at + length
                if kind == _VARINT or (kind == _PIECE and tag < _FLOATS):
                    while (at < end or not kind) and there <= most_values:
                        there += message[at] < 128
                        at += 1
                        if there and not kind:
                            break
                elif kind == _PIECE:
                    there = length >> 2 if tag == _FLOATS else length >> 3 if tag == _DOUBLES else 1
                    at = end
                else:
                    at += 4 if kind == 5 else 8
                values += there or 1
                continue
            if begin < until:
                at = until  # nobody knows what follows
            elif begin < stop and tag == _NUMBER:
                while message[at] > 127:
                    at += 1
                at += 1
            elif begin < stop and tag not in _OTHERS and tag != _ID:  # 0x1A is a shape
                at = stop
            else:
                length, at = _varint(message, at)
                if begin < stop and tag == _INPUT:  # 0x2A are contents
                    until = at + length
                elif tag == _ID and begin >= stop:
                    begin += length
                    at += length
                elif tag == _INPUT:
                    stop = at + length
                else:
                    at += length
            found += at - begin
    except IndexError:
        pass  # protobuf breaks off there, too
    return min(found, size), min(values, size)  # a length that is wrong says more than there can be


def name_in(message: bytes) -> str:
    """The model_name of a message; "" where it has none, or is not as cut() takes it."""
    head: bytes | None = message
    if message[:1] != b"\n":  # it may stand anywhere, and clients put it first
        found = cut(message)
        head = None if found is None else found.head
    at = 0
    try:
        while head:
            tag = head[at]
            length, at = _varint(head, at + 1)
            if tag == _NAME:
                return head[at : at + length].decode()
            at += length
    except (IndexError, UnicodeDecodeError):
        pass
    return ""


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends. Raises IndexError where it does not, or is larger than a message can be."""
    value = 0
    for shift in range(0, 35, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError


def length_of(n: int) -> bytes:
    """A number of bytes, as it stands ahead of them."""
    said = bytearray()
    while n > 127:
        said.append(n & 127 | 128)
        n >>= 7
    said.append(n)
    return bytes(said)

"""The codec: base64 of .npy documents (strict, SIMD) to NumPy arrays and back.

A .npy document is read by a grammar of our own, never by np.load: no pickle, no evaluation, and no memory is taken
before the sizes were checked against the bytes that are there. Format: numpy.lib.format, versions 1.0 to 3.0.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Buffer = bytes | bytearray | memoryview

class CodecInfo(TypedDict):
    """isa: the instruction set in use. available: those that this CPU and its operating system allow, slowest first.
    forced: whether the environment variable VIRTEX_SIMD chose it."""

    isa: str
    available: list[str]
    forced: bool

def codec_info() -> CodecInfo:
    """Which SIMD instruction set the codec uses, chosen when it was imported.

    VIRTEX_SIMD=scalar|avx2|avx512|neon forces one; importing the codec with one that can't be had is an ImportError.
    """

def _use_isa(name: str) -> None: ...
def _remembered() -> list[tuple[np.dtype[Any], tuple[int, ...]]]: ...
def encode_numpy(obj: ArrayLike) -> str:
    """The base64 of an array's .npy document.

    obj: an array or what np.asarray makes one of; any layout, up to 32 dimensions, at most 128 nested rows and 8
    more for each element, so that few bytes do not become many lists. Dtypes: bool, integers, floats, complex numbers,
    fixed-length strings (S, U), datetimes and timedeltas of one unit, and the bfloat16, float8 and narrower ones of
    ml_dtypes (written by name). Byte order is kept. A contiguous array is not copied before it is encoded.
    Returns: 256 characters of header (or a multiple, for many dimensions), then the data; RFC 4648 section 4, padded.
    Raises: TypeError, with the remedy, for another dtype (object, structured, void, StringDType, datetimes of several
    units), another shape, and for a masked array.
    """

def decode_numpy(bytestr: str | _Buffer | NDArray[Any]) -> NDArray[Any]:
    """The array whose .npy document's base64 `bytestr` is.

    bytestr: strict base64, of one .npy document, versions 1.0 to 3.0, of a dtype and shape that encode_numpy writes; or
    the bytes of that document itself. An array, as a body of .npy brings it, is returned as it is.
    Returns: an array of its own memory, writable, data aligned to 64 bytes; in Fortran order if the document is.
    Raises: ItemError (422) with the offset in characters: not strict base64 (RFC 4648 sections 3.5 and 4), not one
    whole .npy document, a dtype or shape that encode_numpy does not write, bools that are neither 0 nor 1, text that is
    not Unicode, bits that a narrow dtype has not.
    """

def encode_npy(values: Sequence[ArrayLike] | NDArray[Any]) -> bytes:
    """Rows of one dtype and shape stacked as one .npy document: shape (n, *shape of a row), C order.

    values: n >= 1 rows; or an array, whose rows they are.
    Raises: ValueError naming the first row that differs from row 0, or that there is none; TypeError as encode_numpy.
    """

def decode_npy(body: _Buffer, admit: Callable[[int, int], object] | None = None) -> list[NDArray[Any]]:
    """The arrays of .npy documents that lie one after another, at least one; arrays as decode_numpy returns them.

    admit(before, count): called ahead of decoding each few hundred documents: how many were, how many are.
    Raises: ItemError (422) with the index of the document that is wrong, and the offset in bytes within it; and what
    admit() raises.
    """

class Items:
    """The items of one request, not yet decoded. Holds the body: it must not change until the last into().

    names: the members of each item, or None where an item is one array. has_numbers: whether any array came as numbers
    of JSON, bare or in lists, and not as base64 or .npy.
    """

    names: tuple[str, ...] | None
    has_numbers: bool
    def __len__(self) -> int: ...
    def shape(self) -> tuple[int, ...] | None:
        """Of the first item of a body of numbers, as its brackets say, which only into() proves; else None."""

    def into(self, rows: NDArray[Any] | Sequence[NDArray[Any]], start: int = 0, stop: int | None = None) -> None:
        """Decodes items [start, stop) into rows[0], rows[1], and so on.

        rows: an array of shape (stop - start, *shape of an item), C-contiguous and writable; with names, one array for
        each. An item has exactly that dtype and shape; big-endian and Fortran-ordered ones are brought into order.
        Raises: ItemError (422) with the index of the lowest item that is wrong: not strict base64 of a .npy document,
        another dtype or shape; then all of `rows` is rubbish. orjson.JSONDecodeError: a body of scan() turns out not to
        be JSON. ValueError, TypeError: rows that are no such arrays.
        """

    def into_exact(self, rows: NDArray[Any], most: int) -> bool:
        """Decodes all items, as into(), of a body without names; whether it is sure that no integer was rounded.

        rows: of floats, of which `most` is one, and each whole number below it. Where it is not sure, values() tell.
        """

    def values(self) -> list[Any]:
        """The items as a JSON parser makes them, once; those that items_of() was given. Raises what the parser does."""

class _Account(Protocol):
    def parse(self, body: _Buffer) -> list[Any]: ...

def scan(body: _Buffer, names: Sequence[str] | None = None, account: _Account | None = None) -> Items | None:
    """The items of {"data": [...]}, found without a JSON parser and without looking at most of the body.

    Each item is the base64 of a .npy document, all with one header, or each is a number or nested lists of them; or,
    with names, an object of exactly these members, each of them always such a text or always numbers. JSON whitespace
    may stand between tokens, and "error": null, which HttpMessage writes, after the data. Whether a text is base64,
    and numbers are such and of the rows' shape, only into() tells.

    account: account.parse(body) is what into() asks for the items of numbers that it can't take, in place of orjson:
    they are wrong, or the rows of a rare dtype (complex, longdouble). What it raises, into() raises.
    Returns: None for any other body: parse it, and give its "data" to items_of(), which means the same to the letter.
    """

def items_of(values: Sequence[Any], names: Sequence[str] | None = None) -> Items:
    """The items of a "data" list that a JSON parser made.

    values: for each item the base64 of a .npy document, or nested lists of numbers (into() refuses those that the rows'
    dtype can't hold: integers beyond it, floats for integers, booleans for numbers), or an array; with names, an
    object of exactly these members, each of them such a value.
    """

def scan_npy(body: _Buffer, ndim: int | None = None, admit: Callable[[int, int], object] | None = None) -> Items:
    """The items of .npy documents that lie one after another: each is one.

    ndim: dimensions of an item. Then a body of one document that has one more holds as many items as its first says.
    admit: as for decode_npy, called where the documents differ, so that an array is made of each.
    Raises: ItemError (422) with the index of the document that is wrong.
    """

def lists_in(body: _Buffer) -> tuple[bytes, list[tuple[int, int]]] | None:
    """Where the lists of numbers stand that are the "data" of the "inputs" of a request of V2; and all else.

    Returns: the body with [i] in place of each, which is not proved to be JSON; from where to where the i-th stands,
    with its brackets. None where text stands in such a list, where an escape is in a name, and for more than 32 lists.
    """

def list_items(body: _Buffer, start: int, end: int, count: int, each: int, account: _Account) -> Items:
    """The items of one list of numbers, which stands in a body from `start` to `end`.

    It has `count` items, nested as the rows, or their numbers all in one: `each` for an item. Which of these its first
    byte says. account: what it raises for the text of the list, into() raises, as for scan().
    """

def row_signature(dtype: np.dtype[Any], shape: Sequence[int]) -> object:
    """What blob_items() is to know of an item, made once."""

def blob_items(body: _Buffer, start: int, count: int, signature: object) -> Items:
    """Items whose bytes stand in a body from `start` on, in C order. Raises ValueError where that is too short."""

def strings(body: _Buffer) -> list[str] | None:
    """The list of {"data": ["...", ...]} if its strings are ASCII without escapes, else None: parse the body.

    JSON whitespace may stand between tokens, and "error": null after the data. What it returns, a JSON parser would.
    More than 2**16 strings are left to the parser too.
    """

def encode_rows(values: NDArray[Any]) -> bytes:
    """The reply body {"data":[...],"error":null} of rows [start, stop) of an array, as JSON numbers in nested lists.

    values: shape (n, ...), 0 <= start <= stop <= n; those rows are copied first if they are not C-contiguous. A float's
    text is the shortest that reads back as the same value of its dtype, laid out as orjson lays it out.
    Returns: None for a dtype that is neither bool, integers, floats of 16 to 64 bits nor bfloat16.
    Raises: ValueError for a number that is not finite.
    """

def encode_numbers(values: NDArray[Any], start: int, stop: int) -> bytes | None:
    """The reply body {"data":[...],"error":null} of rows [start, stop) of an array, as JSON numbers in nested lists.

        values: shape (n, ...), 0 <= start <= stop <= n; those rows are copied first if they are not C-contiguous. Of a
    float the text is the shortest that reads back as the same value of its dtype, laid out as orjson lays it out.
        Returns: None for a dtype that is neither bool, integers, floats of 16 to 64 bits nor bfloat16.
    Raises: ValueError for a number that is not finite.
    """

def flat_numbers(values: NDArray[Any], head: bytes, tail: bytes) -> bytes | None:
    """head, all numbers of an array as JSON with commas between them, tail; None, and ValueError, as encode_numbers().

    values: of one dimension at least.
    """

def number_texts(values: NDArray[Any]) -> list[bytes] | None:
    """The JSON of each row of an array, as encode_numbers() writes it; None, and ValueError, as from that."""

def encode_bytes(_bytes: _Buffer) -> str:
    """Base64 of RFC 4648 section 4, padded, in one line. _bytes: any number of bytes."""

def encode_pieces(pieces: list[_Buffer]) -> str:
    """encode_bytes() of the pieces, one after another, none of them copied first."""

def decode_block(bytestr: str | _Buffer) -> NDArray[np.uint8]:
    """The bytes of strict base64, as decode_bytes(), in writable memory that is aligned to 64 bytes."""

def decode_bytes(bytestr: str | _Buffer) -> bytes:
    """The bytes of strict base64.

    bytestr: padded, canonical, without whitespace (RFC 4648 sections 3.5 and 4).
    Raises: ItemError (422) with the offset of the first bad character.
    """

def weigh(body: _Buffer) -> tuple[int, int]:
    """What a JSON text will become: at most how many Python objects, but for one or two, and bytes for each character.

    Counts a comma, '[' and '{' once and ':' three times, those in strings too, at memory speed.
    """

def count_values(body: _Buffer, most: int) -> int:
    """The objects as weigh() counts them, without what stands in strings; any number above `most` if there are more."""

def orjson_takes(value: Any) -> bool:
    """Whether a value is lists, dicts and tuples of what orjson writes right with OPT_SERIALIZE_NUMPY, to its depth.

    False for a datetime of NumPy, of which orjson aborts on some, and for whatever may hold one.
    """

def big_int_offset(body: _Buffer) -> int:
    """Where in the member "data" of a JSON object the first integer stands that 64 bits can't hold, in bytes; or -1.

    JSON readers differ on such integers (RFC 8259 section 6). The text must be valid. Of several members of that name
    the last counts, as with orjson. Strings are jumped over at memory speed.
    """

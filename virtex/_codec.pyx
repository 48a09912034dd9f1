# cython: language_level=3
"""The codec: base64 of .npy documents to arrays, into rows of arrays, and back. What users read is in _codec.pyi.

Rules: nothing here knows HTTP, batches or clocks. Sizes are checked before memory is taken, so that no header makes us
allocate more than the body it came in; np.load and pickle are never used. What a client got wrong is an ItemError.
"""

import datetime
import os
import uuid

import numpy as np

from .errors import ItemError, quoted
from .serial._npy import build_header, dtype_of, number_dtype, patterns_of, place_of, store

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Check
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.list cimport PyList_Check, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_AsUnsignedLongLong, PyLong_Check
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.math cimport isfinite
from libc.stdint cimport UINT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset

cnp.import_array()

cdef enum:
    ALIGNMENT = 64            # a cache line, and the widest register
    RELEASE_GIL = 1 << 20     # bytes: 20 us of work and more; whoever takes the GIL meanwhile may keep it for 5 ms
    SIGNATURES = 32           # that are remembered: a service has few, and finding one takes up to as many comparisons
    HEADERS = 64              # that are kept ready, of arrays lately encoded
    HEADER_DIMS = 8           # of those
    FEW = 16                  # texts in a body whose offsets need no malloc
    SOME = 256                # documents that are counted before they are decoded
    STAGED = 1 << 16          # numbers that NumPy converts at once
    MANY = 1 << 16            # strings that are made of a body before anybody has counted them
    TEXT = 4096               # bytes of a text that is written on the stack, and copied once its length is known
    DIMS = 31                 # of an item, at most, where its shape is not declared: rows have one more
    DEEP = 254                # lists in lists: as many as orjson writes
    LISTS = 32                # of "data" in a request of V2: one for each input
    LEAST = 3                 # characters that an item has beside its text: two quotes and a comma, or more
    OLD_LINE = 76             # characters in a line of base64, as Virtex 0.1 wrote it


# -- instruction sets

def codec_info():
    return {
        "isa": vx_active.name.decode(),
        "available": [vx_kernels[i].name.decode() for i in range(VX_KERNELS) if vx_allowed(&vx_kernels[i])],
        "forced": bool(os.environ.get("VIRTEX_SIMD")),
    }


def _use_isa(name):
    """For tests and benchmarks: no thread may be decoding."""
    if not vx_choose(name.encode()):
        raise ValueError(f"expected one of {', '.join(codec_info()['available'])}, got {name!r}")


cdef _choose_isa():
    name = os.environ.get("VIRTEX_SIMD")
    if not name:
        vx_choose(NULL)
    elif not vx_choose(name.encode("utf-8", "replace")):
        raise ImportError(
            f"VIRTEX_SIMD: expected one of {', '.join(codec_info()['available'])} (what this CPU and its operating "
            f"system allow), or nothing for the fastest; got {name!r}"
        )


_choose_isa()


# -- text and bytes in

@cython.final
@cython.freelist(16)
cdef class _Input:
    """The bytes of a str or buffer, held until this goes."""

    cdef const uint8_t *data
    cdef Py_ssize_t size
    cdef Py_buffer view
    cdef object text

    def __dealloc__(self):
        if self.text is None:
            PyBuffer_Release(&self.view)


cdef _Input _open_bytes(object data):
    cdef _Input source = _Input.__new__(_Input)
    if type(data) is bytes:
        source.text = data
        source.data = <const uint8_t *>PyBytes_AS_STRING(data)
        source.size = PyBytes_GET_SIZE(data)
        return source
    PyObject_GetBuffer(data, &source.view, PyBUF_SIMPLE)
    source.data = <const uint8_t *>source.view.buf
    source.size = source.view.len
    return source


cdef _Input _open_text(object text):
    if not isinstance(text, str):
        try:
            return _open_bytes(text)
        except (TypeError, BufferError):
            raise ItemError(f"expected a base64 string, got {type(text).__name__}") from None
    if not PyUnicode_IS_ASCII(text):
        offset = next(i for i, c in enumerate(text) if c > "\x7f")
        raise ItemError(f"expected base64 (A-Z a-z 0-9 + / =), got {text[offset]!r}", offset=offset)
    cdef _Input source = _Input.__new__(_Input)
    source.text = text
    source.data = <const uint8_t *>PyUnicode_DATA(text)
    source.size = PyUnicode_GET_LENGTH(text)
    return source


cdef _Input _part(_Input whole, const uint8_t *at, size_t size):
    cdef _Input source = _Input.__new__(_Input)
    source.text = whole  # which holds the bytes
    source.data = at
    source.size = size
    return source


cdef _of_old(const uint8_t *text, size_t size):
    """What an error adds for a text that Virtex 0.1 may have written; "" for others."""
    if size > 2 and text[0] == c"g" and text[1] == c"A" and c"I" <= text[2] <= c"X":  # 0x80, and protocol 2 to 5
        return (
            "; it begins as a pickle: Virtex 0.1 sent those, and only decode_pickle reads any: upgrade the client "
            "(docs/migrating.md, Payloads)"
        )
    if b"\n" in text[:min(size, <size_t>OLD_LINE + 1)] or size and text[size - 1] == c"\n":
        return "; Virtex 0.1 wrote line breaks: upgrade the client, or remove them (docs/migrating.md, Payloads)"
    return ""


cdef _bad_base64(const uint8_t *text, size_t size, size_t at):
    char, old = repr(chr(text[at])), _of_old(text, size)
    if at + 4 >= size:
        return ItemError(f"expected the end of padded, canonical base64 (RFC 4648, 3.5), got {char}{old}", offset=at)
    return ItemError(f"expected base64 (A-Z a-z 0-9 + /), got {char}{old}", offset=at)


cdef size_t _claimed(_Input source) except? 0:
    """How many bytes the length and the padding of a text promise."""
    if source.size % 4:
        old = _of_old(source.data, source.size)
        raise ItemError(
            f"expected padded base64, a multiple of 4 characters; got {source.size}{old}", offset=source.size)
    return vx_claimed(source.data, source.size)


cdef int _decode(uint8_t *data, _Input source, size_t skip, size_t size) except -1:
    """The bytes of a text but the first `skip`."""
    cdef size_t good
    if size < RELEASE_GIL:
        good = vx_decode_after(vx_active, data, source.data, skip, size)
    else:
        with nogil:
            good = vx_decode_after(vx_active, data, source.data, skip, size)
    if good != <size_t>source.size:
        raise _bad_base64(source.data, source.size, good)
    return 0


cdef void _encode(uint8_t *text, const uint8_t *data, size_t size) noexcept:
    if size < RELEASE_GIL:
        vx_active.encode(text, data, size)
        return
    with nogil:
        vx_active.encode(text, data, size)


def decode_bytes(bytestr):
    cdef _Input source = _open_text(bytestr)
    cdef size_t size = _claimed(source)
    cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
    _decode(<uint8_t *>PyBytes_AS_STRING(data), source, 0, size)
    return data


def encode_bytes(_bytes):
    cdef _Input source = _open_bytes(_bytes)
    cdef object text = PyUnicode_New(VX_CHARS(source.size), 127)
    _encode(<uint8_t *>PyUnicode_DATA(text), source.data, source.size)
    return text


def encode_pieces(list pieces):
    cdef list inputs = [_open_bytes(piece) for piece in pieces]
    cdef size_t total = 0, at, whole
    cdef _Input source
    cdef uint8_t carry[3]
    cdef int held = 0
    for source in inputs:
        total += source.size
    cdef object text = PyUnicode_New(VX_CHARS(total), 127)
    cdef uint8_t *to = <uint8_t *>PyUnicode_DATA(text)
    vx_huge_pages(to, total)
    for source in inputs:
        at = 0
        while held and at < <size_t>source.size:
            carry[held] = source.data[at]
            at += 1
            held = (held + 1) % 3
            if not held:
                _encode(to, carry, 3)
                to += 4
        whole = (source.size - at) // 3 * 3
        _encode(to, source.data + at, whole)
        to += whole // 3 * 4
        for at in range(at + whole, <size_t>source.size):
            carry[held] = source.data[at]
            held += 1
    _encode(to, carry, held)
    return text


# -- JSON, before and after it is parsed

def weigh(body):
    cdef _Input source = _open_bytes(body)
    cdef size_t values
    cdef int width
    vx_weigh(source.data, source.size, &values, &width)
    return values, width


def count_values(body, size_t most):
    cdef _Input source = _open_bytes(body)
    return vx_count_values(<const char *>source.data, source.size, most)


def big_int_offset(body):
    cdef _Input source = _open_bytes(body)
    return vx_big_int(<const char *>source.data, source.size)


# Of these, orjson writes what they are; and an array of their numbers.
cdef frozenset _SAFE = frozenset((
    np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64,
    np.float16, np.float32, np.float64, datetime.datetime, datetime.date, datetime.time, uuid.UUID,
))


cdef inline bint _is_leaf(object value):
    return (
        type(value) is str or type(value) is float or type(value) is int or type(value) is bool or value is None
    )


cdef bint _takes(object value, int depth) except -1:
    cdef int number
    if depth == 0:
        return False
    if PyList_Check(value):
        for one in <list>value:
            if not _is_leaf(one) and not _takes(one, depth - 1):
                return False
        return True
    if PyDict_Check(value):
        for one in (<dict>value).values():
            if not _is_leaf(one) and not _takes(one, depth - 1):
                return False
        return True
    if type(value) is tuple:
        return _takes(list(value), depth)
    if type(value) is cnp.ndarray:
        number = cnp.PyArray_TYPE(value)
        return number <= cnp.NPY_DOUBLE or number == cnp.NPY_FLOAT16
    return type(value) in _SAFE


def orjson_takes(value):
    return _is_leaf(value) or _takes(value, DEEP)


# -- signatures: what a .npy header says

@cython.final
cdef class _Signature:
    cdef cnp.dtype dtype
    cdef size_t header        # bytes before the data
    cdef size_t nbytes        # bytes of data
    cdef int ndim
    cdef bint fortran
    cdef int patterns         # which bits its values may have
    cdef bint remembered
    cdef cnp.npy_intp dims[32]
    cdef bytes head           # the header
    cdef bytes text           # and its base64, to which key points
    cdef vx_key key

    cdef shape(self):
        return tuple([self.dims[i] for i in range(self.ndim)])

    cdef void make_key(self):
        """The header's base64, but for the bits that the header's last quantum leaves to the data."""
        cdef size_t more = self.header % 3
        self.text = encode_bytes(self.head).encode()
        self.key.text = <const uint8_t *>PyBytes_AS_STRING(self.text)
        self.key.size = self.header // 3 * 4 + more
        self.key.chars = VX_CHARS(self.header + self.nbytes)
        self.key.mask = 0 if more == 0 else 0xb0 if more == 1 else 0xbc  # with the bit that no value has
        self.key.bits = 0
        if more == 1:
            self.key.bits = (self.head[self.header - 1] & 3) << 4
        elif more == 2:
            self.key.bits = (self.head[self.header - 1] & 15) << 2


# Last used first. An entry comes in only after a whole item of it was decoded, so that headers alone drive out nothing.
cdef list _signatures = []


cdef void _remember(_Signature signature):
    if signature.remembered:
        return
    signature.remembered = True
    _signatures.insert(0, signature)
    if len(_signatures) > SIGNATURES:
        (<_Signature>_signatures.pop()).remembered = False


cdef _Signature _recall(size_t i):
    signature = _signatures[i]
    if i:
        _signatures.insert(0, _signatures.pop(i))
    return signature


def _remembered():
    """For tests: dtype and shape of each, last used first."""
    return [((<_Signature>s).dtype, (<_Signature>s).shape()) for s in _signatures]


cdef _bad_header(const char *expected, const uint8_t *head, size_t size, size_t at):
    came = repr(head[at:min(at + 16, size)]) if at < size else "its end"
    return ItemError(f"expected {expected.decode()} in the .npy header, got {came}", offset=at)


cdef _Signature _parse_header(const uint8_t *head, size_t size):
    cdef vx_npy npy
    cdef const char *expected = NULL
    cdef size_t at
    cdef int64_t nbytes
    cdef _Signature signature = _Signature.__new__(_Signature)
    if not vx_npy_parse(head, size, &npy, &expected, &at):
        raise _bad_header(expected, head, size, at)
    signature.dtype = dtype_of(head[npy.descr:npy.descr_end], npy.named)
    nbytes = signature.dtype.itemsize
    if not vx_times(&nbytes, npy.reach):
        raise ItemError(f"expected an array of less than 2**63 bytes, got {npy.reach} x {quoted(signature.dtype)}")
    signature.nbytes = signature.dtype.itemsize * npy.count
    signature.header = size
    signature.head = head[:size]
    signature.ndim = npy.ndim
    signature.fortran = npy.fortran and npy.ndim > 1
    signature.patterns = patterns_of(signature.dtype)
    for i in range(npy.ndim):
        signature.dims[i] = npy.shape[i]
    signature.make_key()
    return signature


cdef _Signature _parse_text_header(const uint8_t *text, size_t chars, size_t bytes_):
    """The signature at the start of a text, of which so many characters, bytes, are at hand."""
    cdef uint8_t head[VX_NPY_MAX_HEADER + 3]
    cdef const char *expected = NULL
    cdef size_t at, size, bad, prefix = min(bytes_, <size_t>VX_NPY_PREFIX)
    bad = vx_decode_header(vx_active, head, text, chars, prefix)
    if bad:
        raise _bad_base64(text, chars, bad - 1)
    size = vx_npy_size(head, prefix, &expected, &at)
    if size > bytes_:
        raise ItemError(f"expected a .npy header of {size} bytes, got {bytes_}", offset=chars)
    bad = vx_decode_header(vx_active, head, text, chars, size)
    if bad:
        raise _bad_base64(text, chars, bad - 1)
    try:
        if not size:
            raise _bad_header(expected, head, prefix, at)
        return _parse_header(head, size)
    except ItemError as error:
        if error.offset is not None:
            error.offset = error.offset // 3 * 4  # of the quantum, in characters
        error.reason += _of_old(text, chars)
        raise


cdef _Signature _text_signature(const uint8_t *text, size_t chars, size_t bytes_):
    for i in range(len(_signatures)):
        if vx_has_key(&(<_Signature>_signatures[i]).key, text, chars):
            return _recall(i)
    return _parse_text_header(text, chars, bytes_)


cdef _Signature _raw_signature(const uint8_t *doc, size_t left):
    """The signature of a document whose data are there too."""
    cdef const char *expected = NULL
    cdef size_t at, size
    cdef _Signature signature = None
    for i in range(len(_signatures)):
        signature = _signatures[i]
        if signature.header <= left and memcmp(PyBytes_AS_STRING(signature.head), doc, signature.header) == 0:
            signature = _recall(i)
            break
    else:
        size = vx_npy_size(doc, left, &expected, &at)
        if not size:
            raise _bad_header(expected, doc, left, at)
        if size > left:
            raise ItemError(f"expected a .npy header of {size} bytes, got {left}", offset=left)
        signature = _parse_header(doc, size)
    if signature.nbytes > left - signature.header:
        raise _wrong_size(signature, left - signature.header, left)
    return signature


cdef _wrong_size(_Signature signature, size_t got, size_t offset):
    what = f"{quoted(signature.dtype)} {signature.shape()}"
    return ItemError(f"expected {signature.nbytes} bytes of data for {what}, got {got}", offset=offset)


cdef int _check(_Signature signature, const uint8_t *data) except -1:
    if not vx_is_sound(data, signature.nbytes, signature.patterns):
        raise _unsound(signature)
    return 0


cdef _unsound(_Signature signature, index=None):
    if signature.patterns >= VX_TEXT:
        return ItemError("expected Unicode text (code points up to 0x10FFFF, no surrogates), got others", index)
    if signature.patterns == 1:
        return ItemError("expected the bytes of bools to be 0 or 1, got others", index)
    return ItemError(f"expected the bytes of {signature.dtype} to be 0 to {signature.patterns}, got others", index)


# -- arrays in

@cython.final
@cython.freelist(64)
cdef class _Memory:
    """Owns the memory of one decoded array."""

    cdef void *block

    def __dealloc__(self):
        PyMem_RawFree(self.block)


cdef _new_array(_Signature signature, uint8_t **data):
    cdef _Memory memory = _Memory.__new__(_Memory)
    cdef int flags = cnp.NPY_ARRAY_FARRAY if signature.fortran else cnp.NPY_ARRAY_CARRAY
    memory.block = PyMem_RawMalloc(signature.nbytes + ALIGNMENT)
    if memory.block == NULL:
        raise MemoryError(f"no {signature.nbytes} bytes for an array")
    vx_huge_pages(memory.block, signature.nbytes)
    data[0] = <uint8_t *>((<uintptr_t>memory.block + ALIGNMENT) & ~<uintptr_t>(ALIGNMENT - 1))
    Py_INCREF(signature.dtype)
    array = PyArray_NewFromDescr(
        cnp.ndarray, signature.dtype, signature.ndim, signature.dims, NULL, data[0], flags, None)
    cnp.set_array_base(array, memory)
    return array


cdef int _check_size(_Signature signature, _Input source, size_t claimed) except -1:
    if claimed != signature.header + signature.nbytes:
        raise _wrong_size(signature, claimed - signature.header, source.size)
    return 0


cdef _decode_numpy(_Input source, _Signature signature):
    cdef uint8_t *data
    array = _new_array(signature, &data)
    _decode(data, source, signature.header, signature.nbytes)
    _check(signature, data)
    _remember(signature)
    return array


def decode_numpy(bytestr):
    if isinstance(bytestr, cnp.ndarray):
        return bytestr
    cdef _Input source = _open_text(bytestr)
    if source.size and source.data[0] == 0x93:  # which base64 has not: a document as it is
        return _one_npy(bytestr)
    cdef size_t claimed = _claimed(source)
    cdef _Signature signature = _text_signature(source.data, source.size, claimed)
    _check_size(signature, source, claimed)
    return _decode_numpy(source, signature)


cdef _one_npy(body):
    arrays = decode_npy(body, _admit_one)
    return arrays[0]


def _admit_one(before, count):
    if before + count > 1:
        raise ItemError(f"expected one .npy document, got {before + count} or more")


def decode_block(bytestr):
    cdef _Input source = _open_text(bytestr)
    cdef uint8_t *data
    cdef _Signature signature = _Signature.__new__(_Signature)
    signature.dtype = np.dtype(np.uint8)
    signature.nbytes = signature.dims[0] = _claimed(source)
    signature.ndim = 1
    array = _new_array(signature, &data)
    _decode(data, source, 0, signature.nbytes)
    return array


cdef _decode_npy(const uint8_t *doc, _Signature signature):
    cdef uint8_t *data
    array = _new_array(signature, &data)
    vx_copy(data, doc + signature.header, signature.nbytes)
    _check(signature, data)
    _remember(signature)
    return array


def decode_npy(body, admit=None):
    cdef _Input source = _open_bytes(body)
    cdef size_t at = 0
    arrays = []
    while at < <size_t>source.size or not arrays:
        at = _decode_some(source, at, arrays, admit)
    return arrays


cdef size_t _decode_some(_Input source, size_t at, list arrays, object admit) except 0:
    """Appends the next documents' arrays, once they are counted and admitted; returns where the rest begins."""
    cdef size_t size = source.size, end = at
    cdef _Signature signature
    signatures, broken = [], None
    try:
        while len(signatures) < SOME and (end < size or not arrays and not signatures):
            signature = _raw_signature(source.data + end, size - end)
            signatures.append(signature)
            end += signature.header + signature.nbytes
    except ItemError as error:
        broken = error
        broken.index = len(arrays) + len(signatures)
    if admit is not None:
        admit(len(arrays), len(signatures) + (broken is not None))
    for signature in signatures:
        try:
            arrays.append(_decode_npy(source.data + at, signature))
        except ItemError as error:
            error.index = len(arrays)
            raise
        at += signature.header + signature.nbytes
    if broken is not None:
        raise broken
    return end


# -- into rows

cdef enum:
    _MISFIT
    _PLAIN                # the bytes of such an item lie in a row as they come
    _OTHERWISE_LAID_OUT   # the values do, but column by column, or with their bytes swapped


cdef int _fit(_Signature signature, cnp.ndarray rows) except -1:
    cdef bint same = signature.ndim == cnp.PyArray_NDIM(rows) - 1
    if same:
        same = memcmp(signature.dims, cnp.PyArray_DIMS(rows) + 1, signature.ndim * sizeof(cnp.npy_intp)) == 0
    if same and (<void *>signature.dtype == <void *>cnp.PyArray_DESCR(rows) or signature.dtype == rows.dtype):
        return _OTHERWISE_LAID_OUT if signature.fortran else _PLAIN
    if same and signature.dtype.newbyteorder("=") == rows.dtype.newbyteorder("="):
        return _OTHERWISE_LAID_OUT
    return _MISFIT


cdef _misfit(_Signature signature, cnp.ndarray rows, object index):
    shape = (<object>rows).shape[1:]
    got = f"{quoted(signature.dtype)} {signature.shape()}"
    return ItemError(f"expected {rows.dtype} {shape}, got {got}", index)


cdef cnp.ndarray _check_rows(object rows, Py_ssize_t count):
    if not isinstance(rows, cnp.ndarray):
        raise TypeError(f"expected an array for the rows, got {type(rows).__name__}")
    cdef cnp.ndarray array = rows
    if not cnp.PyArray_IS_C_CONTIGUOUS(array) or not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError("expected C-contiguous, writable rows")
    if cnp.PyArray_NDIM(array) < 1 or cnp.PyArray_DIMS(array)[0] != count:
        raise ValueError(f"expected {count} rows, got an array of shape {rows.shape}")
    return array


cdef class Items:
    cdef Py_ssize_t count
    cdef readonly object names
    cdef readonly bint has_numbers

    def __len__(self):
        return self.count

    def shape(self):
        return None

    def into(self, rows, Py_ssize_t start=0, stop=None):
        cdef Py_ssize_t end = self.count if stop is None else stop
        if not 0 <= start <= end <= self.count:
            raise ValueError(f"expected 0 <= start <= stop <= {self.count}, got {start} and {end}")
        if self.names is None:
            self.decode(0, _check_rows(rows, end - start), start, end)
        else:
            self._columns_into(rows, start, end)

    def into_exact(self, rows, uint64_t most):
        self.into(rows)
        return False

    def values(self):
        raise NotImplementedError

    cdef _columns_into(self, rows, Py_ssize_t start, Py_ssize_t stop):
        """Of several items that are wrong, the lowest is named, whichever its column."""
        if len(rows) != len(self.names):
            raise ValueError(f"expected one array for each of {len(self.names)} names, got {len(rows)}")
        arrays = [_check_rows(column, stop - start) for column in rows]
        lowest = None
        for column, array in enumerate(arrays):
            try:
                self.decode(column, array[:stop - start], start, stop)
            except ItemError as error:
                lowest, stop = error, error.index
        if lowest is not None:
            raise lowest

    cdef decode(self, int column, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop):
        """Items [start, stop) of one column into as many rows; ItemError with the item's index."""
        raise NotImplementedError

    cdef wrong(self, int column, Py_ssize_t i, error):
        """The error of a value, with where it stands."""
        error.index = i
        if self.names is not None:
            error.reason = f"{self.names[column]}: {error.reason}"
        return error


@cython.final
cdef class _Spans(Items):
    """Items that lie in one body: texts in JSON or documents as they are, all of a column with the same signature; or
    numbers of JSON, of which nothing is known before they go into rows but where each item begins."""

    cdef _Input source
    cdef _Signature signature  # of column 0; None if there are no items
    cdef list signatures       # of all columns, if there are several
    cdef int columns
    cdef bint raw
    cdef object whole          # a stacked document in column-major order, whose rows' bytes lie all over it
    cdef size_t *starts        # offset of each value (or of raw data) in the body, items x columns
    cdef uint32_t numeric      # a bit for each column of numbers; without names, only the first item's start is kept
    cdef Py_ssize_t next       # of such without names, which item stands
    cdef const uint8_t *next_at  # here
    cdef uint64_t most, odd    # of an integer for a float: as in numbers.h
    cdef object body, account
    cdef _Values parsed        # what a parser made of the body, once numbers were not what they seemed
    cdef size_t few[FEW]

    def __cinit__(self):
        self.starts = self.few

    def __dealloc__(self):
        if self.starts != self.few:
            PyMem_RawFree(self.starts)

    cdef int make_room(self, size_t texts) except -1:
        """Room for so many texts; keeps none that were there but the few."""
        if texts <= FEW:
            return 0
        cdef size_t *starts = <size_t *>PyMem_RawMalloc(texts * sizeof(size_t))
        if starts == NULL:
            raise MemoryError(f"no room for {texts} offsets")
        memcpy(starts, self.few, FEW * sizeof(size_t))
        self.starts = starts
        return 0

    cdef decode(self, int column, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop):
        if start == stop:
            return
        if self.numeric >> column & 1:
            self.decode_numbers(column, rows, start, stop)
            return
        cdef _Signature signature = self.signature_of(column)
        cdef Py_ssize_t i
        cdef int fit = _fit(signature, rows)
        if fit == _MISFIT:
            self.explain(column, rows, start, start)
        elif self.whole is not None:
            self.gather(signature, rows, start, stop)
        elif fit == _PLAIN:
            i = start + self.decode_plain(signature, column, rows, start, stop)
            if i < stop:
                self.explain(column, rows, i, start)
        else:
            for i in range(start, stop):
                try:
                    rows[i - start] = self.array(column, i)
                except ItemError:
                    self.explain(column, rows, i, start)
        _remember(signature)

    cdef gather(self, _Signature signature, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop):
        cdef const uint8_t *row = <const uint8_t *>cnp.PyArray_DATA(rows)
        cdef int patterns = patterns_of(rows.dtype)
        rows[...] = self.whole[start:stop]
        for i in range(start, stop):
            if not vx_is_sound(row, signature.nbytes, patterns):
                raise _unsound(signature, i)
            row += signature.nbytes

    cdef _Signature signature_of(self, int column):
        return self.signature if column == 0 else self.signatures[column]

    cdef size_t decode_plain(
            self, _Signature signature, int column, cnp.ndarray rows, size_t start, size_t stop) noexcept:
        """Returns how many items were good."""
        cdef uint8_t *to = <uint8_t *>cnp.PyArray_DATA(rows)
        cdef const size_t *starts = self.starts + start * self.columns + column
        cdef size_t skip = signature.header, size = signature.nbytes, step = self.columns, count = stop - start
        cdef size_t i, good
        cdef const uint8_t *body = self.source.data
        cdef int patterns = signature.patterns
        if self.raw:
            for i in range(count):
                vx_copy(to + i * size, body + starts[i * step], size)
                if not vx_is_sound(to + i * size, size, patterns):
                    return i
            return count
        if count * size < RELEASE_GIL:
            return vx_decode_rows(vx_active, to, body, starts, step, count, skip, size, patterns)
        with nogil:
            good = vx_decode_rows(vx_active, to, body, starts, step, count, skip, size, patterns)
        return good

    cdef decode_numbers(self, int column, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop):
        cdef Py_ssize_t good = start
        if self.parsed is None:
            good += self.take_numbers(column, rows, start, stop)
        if good < stop:
            self.parse(good)
            self.parsed.decode(column, rows[good - start:], good, stop)

    cdef Py_ssize_t take_numbers(self, int column, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop) except -1:
        """How many items are in their rows. A parser has the word on the next one."""
        cdef Py_ssize_t i = start, end
        if _kind_of(rows) >= 0:
            return self.take_plain(column, rows, start, stop)
        dtype = number_dtype(rows.dtype)
        if dtype is None or dtype is rows.dtype:
            return 0
        staged = _stage(rows, dtype)
        while i < stop:
            end = min(i + len(staged), stop)
            part = staged[:end - i]
            if self.take_plain(column, part, i, end) < end - i:
                break
            try:
                store(part, rows, list(range(i - start, end - start)))
            except ItemError:
                break
            i = end
        return i - start

    cdef Py_ssize_t take_plain(self, int column, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop) except -1:
        cdef vx_form form
        cdef uint8_t *to = <uint8_t *>cnp.PyArray_DATA(rows)
        cdef const uint8_t *begin = self.source.data
        cdef size_t size
        form.kind, form.ndim, form.dims = _kind_of(rows), cnp.PyArray_NDIM(rows) - 1, cnp.PyArray_DIMS(rows) + 1
        form.most, form.odd = self.most, self.odd
        if self.names is None:
            return self.take_rows(&form, to, start, stop)
        size = cnp.PyArray_NBYTES(rows) // cnp.PyArray_DIMS(rows)[0]
        return vx_take_members(&form, begin, begin + self.source.size, self.starts + start * self.columns + column,
                               self.columns, to, size, stop - start)

    cdef Py_ssize_t take_rows(self, const vx_form *form, uint8_t *to, Py_ssize_t start, Py_ssize_t stop) except -1:
        cdef const uint8_t *begin = self.source.data
        cdef const uint8_t *end = begin + self.source.size
        cdef size_t good, skip, count = stop - start
        cdef bint last = stop == self.count
        if start < self.next:
            self.next, self.next_at = 0, begin + self.starts[0]
        skip = start - self.next
        if end - self.next_at < RELEASE_GIL:
            good = vx_take_rows(form, begin, &self.next_at, end, to, skip, count, last)
        else:
            with nogil:
                good = vx_take_rows(form, begin, &self.next_at, end, to, skip, count, last)
        if good == count:
            self.next = stop
        return good

    cdef int parse(self, Py_ssize_t i) except -1:
        """All items, by a parser: numbers that were not taken may be wrong, or of a dtype that numbers.h has not."""
        if self.parsed is not None:
            return 0
        if self.account is not None:
            data = self.account.parse(self.body)
        else:
            import orjson

            data = orjson.loads((<const char *>self.source.data)[:self.source.size])["data"]
        if not isinstance(data, list) or len(data) != self.count:
            raise ItemError("expected the numbers that were there, got a body that has changed", i)
        self.parsed = items_of(data, self.names)
        return 0

    def into_exact(self, rows, uint64_t most):
        self.most, self.odd = most, most if _kind_of(rows) >= 0 else 0  # of what NumPy converts, nothing more is proved
        self.into(rows)
        return self.parsed is None

    def values(self):
        self.parse(0)
        return self.parsed.elements

    def shape(self):
        cdef cnp.npy_intp dims[DIMS]
        cdef const uint8_t *begin = self.source.data
        cdef const uint8_t *end = begin + self.source.size
        cdef int ndim
        if not self.numeric or self.names is not None:
            return None
        if self.source.size < RELEASE_GIL:
            ndim = vx_shape_of(begin, begin + self.starts[0], end, DIMS, dims)
        else:
            with nogil:
                ndim = vx_shape_of(begin, begin + self.starts[0], end, DIMS, dims)
        return None if ndim < 0 else tuple([dims[i] for i in range(ndim)])

    cdef array(self, int column, Py_ssize_t i):
        """One item as an array of its own."""
        cdef _Signature signature = self.signature_of(column)
        cdef const uint8_t *at = self.source.data + self.starts[i * self.columns + column]
        if self.raw:
            return _decode_npy(at - signature.header, signature)
        return _decode_numpy(_part(self.source, at, signature.key.chars), signature)

    cdef explain(self, int column, cnp.ndarray rows, Py_ssize_t i, Py_ssize_t start):
        """Raises what is wrong with item i. What the walk took for a text may have an escape in it, or be no JSON: so a
        parser has the last word, and the item is refused as any that a parser made. Good it can't be: without its
        escapes it is shorter than its header says; but a quote in it may hide a second "data", where a parser looks, or
        so many values that no parser should: the texts that the walk has seen are none of them."""
        cdef _Signature signature = self.signature_of(column)
        if self.raw:
            if _fit(signature, rows) == _MISFIT:
                raise _misfit(signature, rows, i)
            raise _unsound(signature, i)
        if self.numeric:
            self.parse(i)
            self.parsed.decode(column, rows[i - start:i - start + 1], i, i + 1)
            raise ItemError("expected the texts that were there, got a body that has changed", i)
        import orjson

        cdef size_t most = MANY + 6 * self.count * self.columns
        if vx_count_values(<const char *>self.source.data, self.source.size, most) > most:
            raise ItemError("expected one list of texts, got a quote within a text", i)
        data = orjson.loads((<const char *>self.source.data)[:self.source.size])["data"]
        if isinstance(data, list) and len(data) > i:
            (<_Values>items_of(data, self.names)).decode(column, rows[i - start:i - start + 1], i, i + 1)
        raise ItemError("expected one list of texts, got a quote within a text, or a body that has changed", i)


@cython.final
cdef class _Names:
    """Names of members as the walk wants them."""

    cdef list encoded
    cdef const uint8_t *names[VX_MAX_COLUMNS]
    cdef size_t sizes[VX_MAX_COLUMNS]

    def __init__(self, names):
        if not 0 < len(names) <= VX_MAX_COLUMNS or len(set(names)) != len(names):
            raise ValueError(f"expected 1 to {VX_MAX_COLUMNS} different names, got {names}")
        self.encoded = [name.encode() for name in names]
        for i, name in enumerate(self.encoded):
            self.names[i] = <const uint8_t *>PyBytes_AS_STRING(name)
            self.sizes[i] = len(name)


cdef dict _names = {}  # the service's own, never a client's


cdef _Names _names_of(tuple names):
    found = _names.get(names)
    if found is None:
        found = _names[names] = _Names(names)
    return found


def scan(body, names=None, account=None):
    cdef _Spans items = _Spans.__new__(_Spans)
    cdef vx_walk walk
    cdef _Names columns = None
    cdef int outcome
    items.source = _open_bytes(body)
    walk.names, walk.name_sizes, walk.columns = NULL, NULL, 1
    if names is not None:
        items.names = tuple(names)
        columns = _names_of(items.names)
        walk.names, walk.name_sizes, walk.columns = columns.names, columns.sizes, len(columns.encoded)
        items.signatures = [None] * walk.columns
    walk.begin = walk.at = items.source.data
    walk.end = walk.begin + items.source.size
    walk.opened = walk.count = walk.numeric = 0
    walk.starts = items.starts
    walk.room = FEW // walk.columns
    for i in range(walk.columns):
        walk.keys[i].chars = 0
    items.columns = walk.columns
    while True:
        outcome = vx_walk_on(&walk)
        if outcome != VX_ASK:
            break
        if not _answer(&walk, items):
            return None
    if outcome != VX_DONE:
        return None
    items.count = walk.count
    items.numeric, items.has_numbers = walk.numeric, walk.numeric != 0
    if walk.numeric:
        items.next_at = items.source.data + items.starts[0]
        items.most = items.odd = UINT64_MAX
        items.body, items.account = body, account
    return items


cdef bint _answer(vx_walk *walk, _Spans items) except -1:
    """Gives the walk the key or the room that it asks for; False if the text has no header that is taken."""
    cdef size_t left, item = 0
    cdef _Signature signature
    if walk.column < 0:
        for i in range(walk.columns):
            item += walk.keys[i].chars + LEAST
        walk.room = walk.count + (walk.end - walk.at) // item + 1  # there can't be more of them in the rest
        items.make_room(walk.room * walk.columns)
        walk.starts = items.starts
        return True
    left = walk.end - walk.text
    try:
        signature = _text_signature(walk.text, left, left // 4 * 3)
    except ItemError:
        return False
    walk.keys[walk.column] = signature.key
    if walk.column == 0:
        items.signature = signature
    if items.signatures is not None:
        items.signatures[walk.column] = signature
    return True


cdef int _value_into(object value, cnp.ndarray rows, Py_ssize_t i) except -1:
    """One text of a JSON list, or one array, into rows[i]."""
    cdef _Input source
    cdef _Signature signature
    cdef uint8_t *row
    cdef size_t claimed
    if isinstance(value, str):
        source = _open_text(value)
        claimed = _claimed(source)
        signature = _text_signature(source.data, source.size, claimed)
        fit = _fit(signature, rows)
        if fit == _MISFIT:  # before the size, as where the walk found the item: the same error for the same body
            raise _misfit(signature, rows, None)
        _check_size(signature, source, claimed)
        if fit == _PLAIN:
            row = <uint8_t *>cnp.PyArray_DATA(rows) + i * signature.nbytes
            _decode(row, source, signature.header, signature.nbytes)
            _check(signature, row)
            _remember(signature)
            return 0
        value = _decode_numpy(source, signature)
    elif not isinstance(value, np.ndarray):
        raise ItemError(f"expected base64 of a .npy document, or nested lists of numbers; got {type(value).__name__}")
    elif value.shape != (<object>rows).shape[1:] or value.dtype.newbyteorder("=") != rows.dtype.newbyteorder("="):
        raise ItemError(f"expected {rows.dtype} {(<object>rows).shape[1:]}, got {quoted(value.dtype)} {value.shape}")
    (<object>rows)[i] = value
    return 0


cdef int _kind_of(cnp.ndarray rows):
    """As what numbers.h writes a number of these rows; -1 for what it does not write."""
    cdef int number = cnp.PyArray_TYPE(rows), size = cnp.PyArray_ITEMSIZE(rows)
    if number > cnp.NPY_DOUBLE and number != cnp.NPY_FLOAT16 or not cnp.PyArray_ISNOTSWAPPED(rows):
        return -1
    if number == cnp.NPY_BOOL:
        return VX_BOOL
    if number >= cnp.NPY_FLOAT:
        return VX_F16 if size == 2 else VX_F32 if size == 4 else VX_F64
    # NumPy's integers take turns: signed, unsigned
    return (VX_I8 if number % 2 else VX_U8) + (0 if size == 1 else 1 if size == 2 else 2 if size == 4 else 3)


cdef _stage(cnp.ndarray rows, object dtype):
    """Rows of another dtype, fewer where there are many, for numbers that store() converts."""
    length, shape = len(rows), (<object>rows).shape[1:]
    return np.empty((min(length, max(STAGED * length // max(rows.size, 1), 1)), *shape), dtype)


@cython.final
cdef class _Numbers:
    """Writes JSON numbers, as they come nested in lists, into rows: one pass, and no object of NumPy for any of them.

    Nothing is rounded away: an integer beyond the dtype and a float that would become infinite are refused, and so are
    floats for integers, and booleans for numbers. Of floats, precision may be lost, as from any decimal text. Rows of a
    rare dtype are filled by way of `staged` ones, which NumPy converts: until flush() they are not there. An error says
    where within the item it is.
    """

    cdef cnp.ndarray rows, staged
    cdef list waiting         # which rows the staged ones are
    cdef cnp.npy_intp *dims
    cdef int ndim, size       # of one number: bytes
    cdef int depth            # of the value at hand
    cdef Py_ssize_t place[64]  # and where it stands in the lists around it: NumPy has no more dimensions
    cdef char kind            # of the dtype: one of b i u f c
    cdef char *at             # where the next number goes

    def __cinit__(self, cnp.ndarray rows):
        dtype = number_dtype(rows.dtype)
        if dtype is None:
            raise ItemError(f"expected the base64 of a .npy document of {rows.dtype}, got numbers or lists")
        self.rows = rows
        self.dims = cnp.PyArray_DIMS(rows) + 1
        self.ndim = cnp.PyArray_NDIM(rows) - 1
        self.size = dtype.itemsize
        self.kind = ord(dtype.kind)
        self.waiting = []
        if dtype is not rows.dtype:
            self.staged = _stage(rows, dtype)

    cdef int take(self, object value, Py_ssize_t i) except -1:
        """One item, into row i."""
        cdef cnp.ndarray to = self.rows
        if self.staged is not None:
            to = self.staged
            self.waiting.append(i)
            i = len(self.waiting) - 1
        self.at = <char *>cnp.PyArray_DATA(to) + i * (cnp.PyArray_NBYTES(to) // cnp.PyArray_DIMS(to)[0])
        self.fill(value, 0)
        return 0

    cdef bint is_full(self):
        return self.staged is not None and len(self.waiting) == len(self.staged)

    cdef int flush(self) except -1:
        """Raises ItemError with the index of the first row that can't be what came."""
        waiting, self.waiting = self.waiting, []
        if waiting:
            store(self.staged[:len(waiting)], self.rows, waiting)
        return 0

    cdef int fill(self, object value, int depth) except -1:
        self.depth = depth
        if depth == self.ndim:
            return self.put(value)
        if type(value) is not list or PyList_GET_SIZE(value) != self.dims[depth]:
            raise self.misshapen(value, self.dims[depth])
        self.place[depth] = 0
        for one in <list>value:
            self.fill(one, depth + 1)
            self.place[depth] += 1
        return 0

    cdef int put(self, object value) except -1:
        cdef int overflow = 0
        cdef long long number
        cdef unsigned long long more
        if PyFloat_Check(value):
            if self.kind == b"f" or self.kind == b"c":
                return self.put_float(PyFloat_AS_DOUBLE(value), <float>PyFloat_AS_DOUBLE(value),
                                      PyFloat_AS_DOUBLE(value), value)
        elif value is True or value is False:
            if self.kind == b"b":
                self.at[0] = value is True
                self.at += 1
                return 0
        elif PyLong_Check(value) and self.kind != b"b":
            number = PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow == 0 and self.kind == b"i":
                return self.put_int(number, value)
            if overflow == 0 and number < 0 and self.kind == b"u" or overflow < 0:
                raise self.unfit(value)
            try:
                more = PyLong_AsUnsignedLongLong(value) if overflow else <unsigned long long>number
            except OverflowError:  # no JSON reader's
                raise self.unfit(value) from None
            if self.kind == b"u":
                return self.put_unsigned(more, value)
            if self.kind == b"i":
                raise self.unfit(value)
            if overflow:
                return self.put_float(<double>more, <float><double>more, <long double>more, value)
            return self.put_float(<double>number, <float><double>number, <long double>number, value)
        raise self.unfit(value)

    cdef int put_int(self, long long number, object value) except -1:
        cdef int8_t one = <int8_t>number
        cdef int16_t two = <int16_t>number
        cdef int32_t four = <int32_t>number
        if self.size < 8 and number >> (8 * self.size - 1) not in (0, -1):
            raise self.unfit(value)
        memcpy(self.at, <void *>&one if self.size == 1 else <void *>&two if self.size == 2 else
               <void *>&four if self.size == 4 else <void *>&number, self.size)
        self.at += self.size
        return 0

    cdef int put_unsigned(self, unsigned long long number, object value) except -1:
        cdef uint8_t one = <uint8_t>number
        cdef uint16_t two = <uint16_t>number
        cdef uint32_t four = <uint32_t>number
        if self.size < 8 and number >> (8 * self.size):
            raise self.unfit(value)
        memcpy(self.at, <void *>&one if self.size == 1 else <void *>&two if self.size == 2 else
               <void *>&four if self.size == 4 else <void *>&number, self.size)
        self.at += self.size
        return 0

    cdef int put_float(self, double number, float single, long double most, object value) except -1:
        """The number in three precisions; as for NumPy, a float32 is the nearest to the nearest double."""
        cdef int size = self.size // 2 if self.kind == b"c" else self.size
        cdef bint is_finite = isfinite(single) if size == 4 else isfinite(number)
        if size == 2 and is_finite:
            try:
                PyFloat_Pack2(number, self.at, PY_LITTLE_ENDIAN)
            except OverflowError:
                is_finite = False
        elif size != 2:
            memcpy(self.at, <void *>&single if size == 4 else <void *>&number if size == 8 else <void *>&most, size)
        if not is_finite:
            raise self.unfit(value)
        memset(self.at + size, 0, self.size - size)
        self.at += self.size
        return 0

    cdef misshapen(self, object value, Py_ssize_t length):
        got = f"a list of {len(value)}" if type(value) is list else self.word(value)
        shape = (<object>self.rows).shape[1:]
        return ItemError(f"expected {self.rows.dtype} {shape}, got {got} in place of a list of {length}{self.where()}")

    cdef unfit(self, object value):
        dtype = self.rows.dtype
        if dtype.kind in "iu" and type(value) is int:
            limits = np.iinfo(dtype)
            return ItemError(
                f"expected integers from {limits.min} to {limits.max} ({dtype}), got {value}{self.where()}")
        return ItemError(f"expected numbers that {dtype} holds, got {self.word(value)}{self.where()}")

    cdef where(self):
        return place_of([self.place[i] for i in range(self.depth)])

    cdef word(self, object value):
        if isinstance(value, bool):
            return "booleans"
        if isinstance(value, float) and self.kind != b"f" and self.kind != b"c":
            return "fractions or integers beyond 64 bits"
        if isinstance(value, (int, float)):
            return "integers" if self.kind == b"b" else f"{value}"
        return {str: "text", list: "a list in place of a number"}.get(type(value), "other values")


@cython.final
cdef class _Values(Items):
    """Items that a JSON parser made, or arrays."""

    cdef list elements

    def values(self):
        return self.elements

    cdef decode(self, int column, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop):
        cdef _Numbers numbers = None
        cdef Py_ssize_t i = start
        try:
            for i in range(start, stop):
                value = self.member(column, i)
                if not (PyList_Check(value) or PyLong_Check(value) or PyFloat_Check(value)):
                    _value_into(value, rows, i - start)
                    continue
                if numbers is None:
                    numbers = _Numbers(rows)
                elif numbers.is_full():
                    self.flush(numbers, column, start, stop)
                numbers.take(value, i - start)
        except ItemError as error:
            self.flush(numbers, column, start, i)  # one before it may be wrong too
            raise self.wrong(column, i, error) if error.index is None else error
        self.flush(numbers, column, start, stop)

    cdef flush(self, _Numbers numbers, int column, Py_ssize_t start, Py_ssize_t stop):
        """Raises the error of the lowest item before `stop` that the numbers of NumPy's making show."""
        if numbers is None or numbers.staged is None:
            return
        try:
            numbers.flush()
        except ItemError as error:
            if start + error.index < stop:
                raise self.wrong(column, start + error.index, error)

    cdef member(self, int column, Py_ssize_t i):
        value = self.elements[i]
        if self.names is None:
            return value
        if not isinstance(value, dict):
            raise ItemError(f"expected an object of the members {list(self.names)}, got {type(value).__name__}", i)
        if len(value) != len(self.names) or self.names[column] not in value:
            raise ItemError(f"expected an object of the members {list(self.names)}, got {quoted(list(value)[:20])}", i)
        return value[self.names[column]]


def items_of(values, names=None):
    cdef _Values items = _Values.__new__(_Values)
    items.elements = list(values)
    items.names = None if names is None else tuple(names)
    items.count = len(items.elements)
    items.has_numbers = _have_numbers(items.elements, items.names is not None)
    return items


cdef bint _have_numbers(list values, bint named):
    """Whether any of the items is numbers, or any of their members."""
    for value in values:
        if PyList_Check(value) or PyLong_Check(value) or PyFloat_Check(value):
            return True
        if named and PyDict_Check(value) and _have_numbers(list((<dict>value).values()), False):
            return True
    return False


cdef _Signature _row_signature(_Signature whole):
    """Of one row of a stacked document."""
    cdef _Signature row = _Signature.__new__(_Signature)
    row.dtype, row.ndim, row.patterns, row.header = whole.dtype, whole.ndim - 1, whole.patterns, whole.header
    row.nbytes = whole.nbytes // whole.dims[0] if whole.dims[0] else 0
    memcpy(row.dims, whole.dims + 1, row.ndim * sizeof(cnp.npy_intp))
    row.remembered = True  # no document begins like this
    return row


def scan_npy(body, ndim=None, admit=None):
    cdef _Spans items = _Spans.__new__(_Spans)
    cdef _Input source = _open_bytes(body)
    cdef size_t size = source.size, each, i
    cdef _Signature first
    try:
        first = _raw_signature(source.data, size)
    except ItemError as error:
        error.index = 0
        raise
    each = first.header + first.nbytes
    items.source, items.columns, items.raw, items.signature = source, 1, True, first
    if ndim is not None and first.ndim == ndim + 1 and each == size:
        return _scan_stacked(items, first, body)
    if size % each:
        return items_of(decode_npy(body, admit))
    items.make_room(size // each)
    for i in range(size // each):
        if memcmp(source.data + i * each, source.data, first.header) != 0:
            return items_of(decode_npy(body, admit))
        items.starts[i] = i * each + first.header
    items.count = size // each
    return items


cdef _Spans _scan_stacked(_Spans items, _Signature whole, object body):
    cdef _Signature row = _row_signature(whole)
    cdef Py_ssize_t i, count = whole.dims[0]
    items.count, items.signature = count, row
    if whole.nbytes == 0 and count:  # a header may claim any number of rows of nothing
        raise ItemError(f"expected rows of at least one byte, got {quoted(whole.dtype)} {whole.shape()}", 0)
    if whole.fortran:
        items.whole = np.ndarray(whole.shape(), whole.dtype, body, whole.header, order="F")
        return items
    items.make_room(count)
    for i in range(count):
        items.starts[i] = row.header + i * row.nbytes
    return items


# -- tensors of V2 in

def lists_in(body):
    cdef _Input source = _open_bytes(body)
    cdef const char *text = <const char *>source.data
    cdef vx_list lists[LISTS]
    cdef size_t at = 0, left = source.size
    cdef int i, count
    if source.size < RELEASE_GIL:
        count = vx_find_data(source.data, source.data + source.size, lists, LISTS)
    else:
        with nogil:
            count = vx_find_data(source.data, source.data + source.size, lists, LISTS)
    if count < 0:
        return None
    cdef list places = []
    for i in range(count):
        left -= lists[i].end - lists[i].start - (3 if i < 10 else 4)  # those of [i]
        places.append((lists[i].start, lists[i].end))
    cdef bytes rest = PyBytes_FromStringAndSize(NULL, left)
    cdef char *to = PyBytes_AS_STRING(rest)
    for i in range(count):
        memcpy(to, text + at, lists[i].start - at)
        to += lists[i].start - at
        to[0], to[1] = c"[", c"0" + (i if i < 10 else i // 10)
        if i >= 10:
            to[2] = c"0" + i % 10
        to[2 if i < 10 else 3] = c"]"
        to += 3 if i < 10 else 4
        at = lists[i].end
    memcpy(to, text + at, source.size - at)
    return rest, places


@cython.final
cdef class _List(Items):
    """The numbers of one list of JSON in a body: in lists as the rows are, or all in one."""

    cdef _Input source
    cdef object account
    cdef size_t start, end        # of the list in the body, with its brackets
    cdef bint flat
    cdef size_t each              # numbers of an item
    cdef Py_ssize_t next          # which item stands
    cdef const uint8_t *next_at   # here
    cdef uint64_t most, odd       # of an integer for a float: as in numbers.h
    cdef list parsed              # what a parser made of the list, once numbers were not what they seemed

    cdef decode(self, int column, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop):
        cdef Py_ssize_t good = start
        if start == stop:
            return
        if self.parsed is None and _kind_of(rows) >= 0 and self.each:
            good += self.take(rows, start, stop)
        if good < stop:
            self.parse()
            if self.flat:
                self.fill(rows[good - start:], good, stop)
            else:
                (<_Values>items_of(self.parsed)).decode(column, rows[good - start:], good, stop)

    cdef Py_ssize_t take(self, cnp.ndarray rows, Py_ssize_t start, Py_ssize_t stop):
        """How many items are in their rows. A parser has the word on the next one."""
        cdef vx_form form
        cdef uint8_t *to = <uint8_t *>cnp.PyArray_DATA(rows)
        cdef const uint8_t *begin = self.source.data
        cdef const uint8_t *end = begin + self.end
        cdef size_t good, skip, count = stop - start
        cdef bint last = stop == self.count
        form.kind, form.ndim, form.dims = _kind_of(rows), cnp.PyArray_NDIM(rows) - 1, cnp.PyArray_DIMS(rows) + 1
        form.most, form.odd = self.most, self.odd
        if start < self.next:
            self.next, self.next_at = 0, begin + self.start + 1
        skip = start - self.next
        if self.flat:
            form.ndim = 0
            skip *= self.each
            count *= self.each
        if end - self.next_at < RELEASE_GIL:
            good = vx_take_rows(&form, begin, &self.next_at, end, to, skip, count, last)
        else:
            with nogil:
                good = vx_take_rows(&form, begin, &self.next_at, end, to, skip, count, last)
        if good == count:
            self.next = stop
        return good // self.each if self.flat else good

    cdef fill(self, cnp.ndarray rows, size_t start, size_t stop):
        """Those of a parser, where they are in one list."""
        try:
            items_of(self.parsed[start * self.each:stop * self.each]).into(rows.reshape(-1))
        except ItemError as error:
            at = start * self.each + error.index
            raise ItemError(f"{error.reason} at [{at}]", at // self.each) from None

    cdef int parse(self) except -1:
        """The list, by a parser. What stands ahead of it becomes spaces, so that a byte is named by its place there."""
        cdef bytes text
        if self.parsed is not None:
            return 0
        text = b'{"data":' + b" " * (self.start - 8) + (<const char *>self.source.data)[self.start:self.end] + b"}"
        parsed = self.account.parse(text)
        self.check(parsed)
        self.parsed = parsed
        return 0

    cdef int check(self, list values) except -1:
        cdef size_t expected = self.count * self.each if self.flat else self.count
        if <size_t>len(values) != expected:
            raise ItemError(f"expected a list of {expected}, got one of {len(values)}")
        if _has_others(values):  # text would be taken for base64 of an array
            raise ItemError("expected numbers, got text, null or an object", 0)
        return 0

    def into_exact(self, rows, uint64_t most):
        self.most, self.odd = most, most if _kind_of(rows) >= 0 else 0
        self.into(rows)
        return self.parsed is None

    def values(self):
        self.parse()
        if not self.flat:
            return self.parsed
        return [self.parsed[i * self.each:(i + 1) * self.each] for i in range(self.count)]


cdef bint _has_others(list values) except -1:
    for value in values:
        if type(value) is list:
            if _has_others(value):
                return True
        elif not (PyLong_Check(value) or PyFloat_Check(value)):
            return True
    return False


def list_items(body, size_t start, size_t end, Py_ssize_t count, size_t each, account):
    cdef _List items = _List.__new__(_List)
    items.source = _open_bytes(body)
    if not 8 <= start < end <= <size_t>items.source.size:
        raise ValueError(f"expected a list behind byte 8 of {items.source.size}, got {start} to {end}")
    items.account = account
    items.start, items.end, items.count, items.each = start, end, count, each
    items.next_at = vx_space(items.source.data + start + 1, items.source.data + end)
    items.flat = items.next_at[0] != c"["
    items.most = items.odd = UINT64_MAX
    items.has_numbers = True
    return items


def row_signature(dtype, shape):
    cdef _Signature row = _Signature.__new__(_Signature)
    row.dtype, row.ndim, row.patterns = dtype, len(shape), patterns_of(dtype)
    row.nbytes = dtype.itemsize
    for i, length in enumerate(shape):
        row.dims[i] = length
        row.nbytes *= length
    row.remembered = True  # no document begins like this
    return row


def blob_items(body, size_t start, Py_ssize_t count, _Signature signature not None):
    cdef _Spans items = _Spans.__new__(_Spans)
    cdef _Signature row = signature
    cdef Py_ssize_t i
    items.source = _open_bytes(body)
    if start + count * row.nbytes > <size_t>items.source.size:
        raise ValueError(f"expected {count} rows of {row.nbytes} bytes from {start} on, got {items.source.size}")
    items.columns, items.raw, items.signature, items.count = 1, True, row, count
    items.make_room(count)
    for i in range(count):
        items.starts[i] = start + i * row.nbytes
    return items


# -- strings in

def strings(body):
    cdef _Input source = _open_bytes(body)
    cdef const uint8_t *end = source.data + source.size
    cdef const uint8_t *at = vx_open(source.data, end)
    cdef const uint8_t *text
    cdef size_t size
    cdef int last = False
    if at == NULL:
        return None
    found = []
    text = vx_take(at, end, b"]")
    if text != NULL:
        return found if vx_closes(text, end) else None
    while not last:
        text = vx_take_string(vx_active, &at, end, &size, &last)
        if text == NULL or len(found) == MANY:
            return None
        found.append(_ascii(text, size))
    return found if vx_closes(at, end) else None


cdef _ascii(const uint8_t *text, size_t size):
    if size == 0:
        return ""
    made = PyUnicode_New(size, 127)
    memcpy(PyUnicode_DATA(made), text, size)
    return made


# -- arrays out

cdef _as_array(object value):
    """An array with one contiguous block of data, and no meaning that .npy would lose."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("a masked array has no .npy form: fill it first, as in array.filled(0)")
    cdef cnp.ndarray array = np.asarray(value)
    if cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_IS_F_CONTIGUOUS(array):
        return array
    return cnp.PyArray_GETCONTIGUOUS(array)


cdef cnp.ndarray _as_rows(object values):
    """A C-contiguous array of at least one dimension."""
    if type(values) is cnp.ndarray and cnp.PyArray_IS_C_CONTIGUOUS(values) and cnp.PyArray_NDIM(values) > 0:
        return values
    array = np.asarray(_as_array(values), order="C")
    if array.ndim == 0:
        raise ValueError(f"expected rows along a zeroth dimension, got one value: {array.dtype} ()")
    return array


@cython.final
cdef class _Header:
    """The base64 of one header, ready to be copied, and what it was built for."""

    cdef cnp.dtype dtype
    cdef int ndim
    cdef bint fortran
    cdef cnp.npy_intp dims[HEADER_DIMS]
    cdef bytes text


cdef list _headers = [None] * HEADERS


cdef inline bint _is_header_of(_Header header, void *dtype, int ndim, const cnp.npy_intp *dims, bint fortran):
    return (
        <void *>header.dtype == dtype
        and header.ndim == ndim
        and header.fortran == fortran
        and (ndim == 0 or memcmp(header.dims, dims, ndim * sizeof(cnp.npy_intp)) == 0)
    )


cdef bytes _build_text(object dtype, int ndim, const cnp.npy_intp *dims, bint fortran):
    shape = tuple([dims[i] for i in range(ndim)])
    return encode_bytes(build_header(dtype, shape, bool(fortran))).encode()


cdef bytes _header_text(cnp.ndarray array, int skip, bint fortran):
    """The header of an array, or of its rows if `skip` is 1. Found by the identity of the dtype, which the entry keeps
    alive."""
    cdef int ndim = cnp.PyArray_NDIM(array) - skip
    cdef const cnp.npy_intp *dims = cnp.PyArray_DIMS(array) + skip
    cdef void *dtype = <void *>cnp.PyArray_DESCR(array)
    cdef uintptr_t mix = <uintptr_t>dtype >> 4
    cdef _Header header
    if ndim > HEADER_DIMS:
        return _build_text(array.dtype, ndim, dims, fortran)
    for i in range(ndim):
        mix = mix * 31 + <uintptr_t>dims[i]
    mix = (mix ^ mix >> 7 ^ fortran) % HEADERS
    found = _headers[mix]
    if found is not None and _is_header_of(<_Header>found, dtype, ndim, dims, fortran):
        return (<_Header>found).text
    header = _Header.__new__(_Header)
    header.text = _build_text(array.dtype, ndim, dims, fortran)
    header.dtype, header.ndim, header.fortran = array.dtype, ndim, fortran
    if ndim:  # of none, NumPy has no list
        memcpy(header.dims, dims, ndim * sizeof(cnp.npy_intp))
    _headers[mix] = header
    return header.text


def encode_numpy(obj):
    cdef cnp.ndarray array
    if type(obj) is cnp.ndarray and cnp.PyArray_IS_C_CONTIGUOUS(obj):
        array = obj
    else:
        array = _as_array(obj)
    cdef bytes header = _header_text(array, 0, not cnp.PyArray_IS_C_CONTIGUOUS(array))
    cdef size_t start = len(header), nbytes = cnp.PyArray_NBYTES(array)
    cdef object text = PyUnicode_New(start + VX_CHARS(nbytes), 127)
    cdef uint8_t *to = <uint8_t *>PyUnicode_DATA(text)
    vx_huge_pages(to, nbytes)
    memcpy(to, PyBytes_AS_STRING(header), start)
    _encode(to + start, <const uint8_t *>cnp.PyArray_DATA(array), nbytes)
    return text


cdef const char *_PREFIX = b'{"data":['
cdef const char *_SUFFIX = b'],"error":null}'


def encode_rows(values):
    cdef cnp.ndarray array = _as_rows(values)
    cdef bytes header = _header_text(array, 1, False)
    cdef size_t count = cnp.PyArray_DIMS(array)[0], start = len(header)
    cdef size_t size = cnp.PyArray_NBYTES(array) // count if count else 0
    cdef size_t body_size = 9 + count * (start + VX_CHARS(size) + 2) + (count - 1 if count else 0) + 15
    cdef bytes body = PyBytes_FromStringAndSize(NULL, body_size)
    cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(body)
    cdef const uint8_t *data = <const uint8_t *>cnp.PyArray_DATA(array)
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(header)
    vx_huge_pages(to, body_size)
    memcpy(to, _PREFIX, 9)
    if count * size < RELEASE_GIL:
        to = vx_encode_rows(vx_active, to + 9, data, count, size, text, start)
    else:
        with nogil:
            to = vx_encode_rows(vx_active, to + 9, data, count, size, text, start)
    memcpy(to, _SUFFIX, 15)
    return body


# -- numbers out

cdef size_t WRITABLE = <size_t>1 << 48  # bytes of a text that is tried at all
cdef int _bfloat16 = -1       # its number among NumPy's dtypes, once it was met


cdef int _written_kind(cnp.ndarray rows) except -2:
    """As what shortest.h writes a number of these rows; -1 for what it does not write."""
    global _bfloat16
    cdef int number = cnp.PyArray_TYPE(rows)
    if number >= NPY_USERDEF and number != _bfloat16 and (<object>rows).dtype.name == "bfloat16":
        _bfloat16 = number
    if number == _bfloat16 and cnp.PyArray_ISNOTSWAPPED(rows):
        return VX_BF16
    return _kind_of(rows)


cdef bytes _write(cnp.ndarray rows, int kind, size_t start, size_t stop, bytes head, bytes tail, bint flat=False):
    """head, rows [start, stop) with commas between them, tail. flat: all their numbers as if they were rows. Raises
    ValueError for a number that is not finite."""
    cdef uint8_t few[TEXT]
    cdef uint8_t *begin = few
    cdef uint8_t *end
    cdef const uint8_t *data = <const uint8_t *>cnp.PyArray_DATA(rows)
    cdef vx_form form
    cdef cnp.PyObject *body = NULL
    cdef size_t size, most, each, lead = len(head), count = stop - start
    form.kind, form.ndim, form.dims = kind, cnp.PyArray_NDIM(rows) - 1, cnp.PyArray_DIMS(rows) + 1
    if flat:
        each = cnp.PyArray_SIZE(rows) // max(cnp.PyArray_DIMS(rows)[0], 1)
        form.ndim, start, count = 0, start * each, count * each
    most = vx_most_text(&form, &size)
    if most == 0 or count > WRITABLE // most:
        raise MemoryError(f"no room for {count} rows of {(<object>rows).shape[1:]} as JSON")
    most = most * count + lead + len(tail) + VX_SLACK
    if most > TEXT:
        body = new_bytes(NULL, most)
        begin = <uint8_t *>PyBytes_AS_STRING(<bytes>body)
        vx_huge_pages(begin, most)
    memcpy(begin, PyBytes_AS_STRING(head), lead)
    if count * size < RELEASE_GIL:
        end = vx_put_forms(&form, begin + lead, data + start * size, count)
    else:
        with nogil:
            end = vx_put_forms(&form, begin + lead, data + start * size, count)
    if end == NULL:
        Py_XDECREF(body)
        raise ValueError("a number is not finite")
    end -= count > 0
    memcpy(end, PyBytes_AS_STRING(tail), len(tail))
    size = end - begin + len(tail)
    if body == NULL:
        return PyBytes_FromStringAndSize(<const char *>begin, size)
    _PyBytes_Resize(&body, size)
    written = <bytes>body
    Py_XDECREF(body)
    return written


def encode_numbers(values, size_t start, size_t stop):
    cdef cnp.ndarray rows = values
    cdef int kind = _written_kind(rows)
    if kind < 0 or not cnp.PyArray_IS_C_CONTIGUOUS(rows):
        rows = _in_order(values[start:stop])
        start, stop = 0, stop - start
        kind = _written_kind(rows)
    return None if kind < 0 else _write(rows, kind, start, stop, b'{"data":[', b'],"error":null}')


def flat_numbers(values, bytes head, bytes tail):
    cdef cnp.ndarray rows = values
    cdef int kind = _written_kind(rows)
    if kind < 0 or not cnp.PyArray_IS_C_CONTIGUOUS(rows):
        rows = _in_order(values)
        kind = _written_kind(rows)
    return None if kind < 0 else _write(rows, kind, 0, len(rows), head, tail, True)


def number_texts(values):
    cdef cnp.ndarray rows = _in_order(values)
    cdef int kind = _written_kind(rows)
    cdef Py_ssize_t i
    return None if kind < 0 else [_write(rows, kind, i, i + 1, b"", b"") for i in range(len(rows))]


cdef _in_order(array):
    """The same values, C-contiguous, in the machine's byte order."""
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


cdef list _equal_rows(object values):
    """C-contiguous rows, all of the first one's dtype and shape."""
    rows = [np.asarray(_as_array(value), order="C") for value in values]
    if not rows:
        raise ValueError("expected at least one row, got none: without one there is no dtype")
    first = rows[0]
    for i, row in enumerate(rows):
        if row.dtype != first.dtype or row.shape != first.shape:
            raise ValueError(f"expected rows of one dtype and shape, got {first.dtype} {first.shape} in row 0 and "
                             f"{row.dtype} {row.shape} in row {i}")
    return rows


def encode_npy(values):
    cdef cnp.ndarray row
    cdef size_t at
    if isinstance(values, np.ndarray):
        rows = [_as_rows(values)]
        shape = values.shape
    else:
        rows = _equal_rows(values)
        shape = (len(rows), *rows[0].shape)
    cdef bytes header = build_header(rows[0].dtype, shape, False)
    cdef size_t nbytes = cnp.PyArray_NBYTES(rows[0])
    cdef bytes body = PyBytes_FromStringAndSize(NULL, len(header) + nbytes * len(rows))
    at = len(header)
    memcpy(PyBytes_AS_STRING(body), PyBytes_AS_STRING(header), at)
    for row in rows:
        memcpy(PyBytes_AS_STRING(body) + at, cnp.PyArray_DATA(row), nbytes)
        at += nbytes
    return body

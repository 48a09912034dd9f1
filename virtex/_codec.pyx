# cython: language_level=3
"""The codec: base64 of .npy documents to arrays and back. What users read about it is in _codec.pyi.

Rules: nothing here knows HTTP, batches or clocks. Sizes are checked before memory is taken, so that no header makes us
allocate more than the body it came in; np.load and pickle are never used. What a client got wrong is an ItemError.
"""

import os
import re

import numpy as np

from .errors import ItemError

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libc.string cimport memcmp, memcpy

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void *PyUnicode_DATA(object text)
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        type cls, cnp.dtype dtype, int ndim, cnp.npy_intp *dims, cnp.npy_intp *strides, void *data, int flags,
        object like)

cdef extern from "cpu.h" nogil:
    ctypedef struct vx_base64:
        const char *name
        size_t (*decode)(uint8_t *, const uint8_t *, size_t) noexcept nogil
        void (*encode)(uint8_t *, const uint8_t *, size_t) noexcept nogil
    const vx_base64 *vx_active
    const vx_base64 *vx_kernels
    const size_t VX_KERNELS
    int vx_allowed(const vx_base64 *)
    int vx_choose(const char *)
    size_t VX_CHARS(size_t)

cdef extern from "npy.h" nogil:
    enum:
        VX_NPY_MAX_HEADER
        VX_NPY_PREFIX
        VX_NPY_MAX_DIMS
    ctypedef struct vx_npy:
        uint32_t size, descr, descr_end
        uint8_t major, fortran, named, fields
        int64_t itemsize, count, reach
        int ndim
        int64_t shape[32]
    size_t vx_npy_size(const uint8_t *, size_t, const char **, size_t *)
    int vx_npy_parse(const uint8_t *, size_t, vx_npy *, const char **, size_t *)
    int vx_times(int64_t *, int64_t)

cdef extern from "item.h" nogil:
    size_t vx_claimed(const uint8_t *, size_t)
    size_t vx_decode_after(const vx_base64 *, uint8_t *, const uint8_t *, size_t, size_t)
    int vx_are_bools(const uint8_t *, size_t)

cdef extern from "big_int.h" nogil:
    Py_ssize_t vx_big_int(const char *, size_t)


cdef enum:
    HEADER_BYTES = 192        # written: a multiple of 3 (data begins on a base64 quantum) and of 64 (NumPy's rule)
    ALIGNMENT = 64            # a cache line, and the widest register
    RELEASE_GIL = 1 << 20     # bytes: 30 us of work and more; another thread may keep the GIL for 5 ms
    HEADER_SLOTS = 64         # headers kept ready, of arrays lately encoded

# The dtypes that ml_dtypes adds. np.save loses them ('<V2'); by name they come back.
cdef frozenset _NAMED = frozenset((
    "bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
    "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn", "int4", "uint4", "int2",
    "uint2",
))


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
cdef class _Input:
    """The bytes of a str or buffer, held until this goes."""

    cdef const uint8_t *data
    cdef Py_ssize_t size
    cdef Py_buffer view
    cdef object text

    def __dealloc__(self):
        if self.text is None:
            PyBuffer_Release(&self.view)


cdef _Input _open_text(object text):
    cdef _Input source = _Input.__new__(_Input)
    if isinstance(text, str):
        source.text = text
        if not PyUnicode_IS_ASCII(text):
            offset = next(i for i, c in enumerate(text) if c > "\x7f")
            raise ItemError(f"expected base64 (A-Z a-z 0-9 + / =), got {text[offset]!r}", offset=offset)
        source.data = <const uint8_t *>PyUnicode_DATA(text)
        source.size = PyUnicode_GET_LENGTH(text)
        return source
    try:
        PyObject_GetBuffer(text, &source.view, PyBUF_SIMPLE)
    except (TypeError, BufferError):
        raise ItemError(f"expected a base64 string, got {type(text).__name__}") from None
    source.data = <const uint8_t *>source.view.buf
    source.size = source.view.len
    return source


cdef _Input _open_bytes(object data):
    cdef _Input source = _Input.__new__(_Input)
    PyObject_GetBuffer(data, &source.view, PyBUF_SIMPLE)
    source.data = <const uint8_t *>source.view.buf
    source.size = source.view.len
    return source


cdef _bad_base64(const uint8_t *text, size_t size, size_t at):
    char = repr(chr(text[at]))
    if at + 4 >= size:
        return ItemError(f"expected the end of padded, canonical base64 (RFC 4648, 3.5), got {char}", offset=at)
    return ItemError(f"expected base64 (A-Z a-z 0-9 + /), got {char}", offset=at)


cdef size_t _decode(uint8_t *data, const uint8_t *text, size_t skip, size_t size) noexcept:
    cdef size_t good
    if size < RELEASE_GIL:
        return vx_decode_after(vx_active, data, text, skip, size)
    with nogil:
        good = vx_decode_after(vx_active, data, text, skip, size)
    return good


cdef void _encode(uint8_t *text, const uint8_t *data, size_t size) noexcept:
    if size < RELEASE_GIL:
        vx_active.encode(text, data, size)
        return
    with nogil:
        vx_active.encode(text, data, size)


cdef size_t _claimed(_Input source) except? 0:
    if source.size % 4:
        raise ItemError(f"expected padded base64, a multiple of 4 characters; got {source.size}", offset=source.size)
    return vx_claimed(source.data, source.size)


def decode_bytes(text):
    cdef _Input source = _open_text(text)
    cdef size_t size = _claimed(source)
    cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
    cdef size_t good = _decode(<uint8_t *>PyBytes_AS_STRING(data), source.data, 0, size)
    if good != <size_t>source.size:
        raise _bad_base64(source.data, source.size, good)
    return data


def encode_bytes(data):
    cdef _Input source = _open_bytes(data)
    cdef object text = PyUnicode_New(VX_CHARS(source.size), 127)
    _encode(<uint8_t *>PyUnicode_DATA(text), source.data, source.size)
    return text


def big_int_offset(body):
    cdef _Input source = _open_bytes(body)
    return vx_big_int(<const char *>source.data, source.size)


# -- arrays in

@cython.final
@cython.freelist(64)
cdef class _Memory:
    """Owns the memory of one decoded array."""

    cdef void *block

    def __dealloc__(self):
        PyMem_RawFree(self.block)


@cython.final
cdef class _Signature:
    """What a .npy header says."""

    cdef cnp.dtype dtype
    cdef size_t header        # bytes before the data
    cdef size_t nbytes        # bytes of data
    cdef int ndim
    cdef bint fortran
    cdef bint bools
    cdef cnp.npy_intp dims[32]

    cdef shape(self):
        return tuple([self.dims[i] for i in range(self.ndim)])


cdef _new_array(_Signature signature, uint8_t **data):
    cdef _Memory memory = _Memory.__new__(_Memory)
    cdef int flags = cnp.NPY_ARRAY_FARRAY if signature.fortran else cnp.NPY_ARRAY_CARRAY
    cdef cnp.ndarray array
    memory.block = PyMem_RawMalloc(signature.nbytes + ALIGNMENT)
    if memory.block == NULL:
        raise MemoryError(f"no {signature.nbytes} bytes for an array")
    data[0] = <uint8_t *>((<uintptr_t>memory.block + ALIGNMENT) & ~<uintptr_t>(ALIGNMENT - 1))
    Py_INCREF(signature.dtype)
    array = PyArray_NewFromDescr(
        cnp.ndarray, signature.dtype, signature.ndim, signature.dims, NULL, data[0], flags, None)
    cnp.set_array_base(array, memory)
    return array


# A field list that the grammar has accepted holds these tokens alone.
_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|\d+|[()\[\]]")


cdef _parse_fields(str text):
    """The value of an accepted field list: ast.literal_eval would cost ten times as much."""
    stack = [[]]
    for token in _TOKEN.findall(text):
        if token in "([":
            stack.append([])
        elif token in ")]":
            inner = stack.pop()
            stack[-1].append(inner if token == "]" else tuple(inner))
        else:
            stack[-1].append(int(token) if token.isdigit() else token[1:-1])
    return stack[0][0]


cdef _named_dtype(str name):
    if name not in _NAMED:
        raise ValueError(f"expected a dtype of NumPy or ml_dtypes, got {name!r}")
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name))


cdef cnp.dtype _dtype_of(const uint8_t *head, vx_npy *npy):
    cdef bytes raw = head[npy.descr:npy.descr_end]
    try:
        descr = raw.decode("utf-8" if npy.major == 3 else "latin-1")
        if npy.named:
            return _named_dtype(descr)
        dtype = np.lib.format.descr_to_dtype(_parse_fields(descr)) if npy.fields else np.dtype(descr)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ItemError(f"expected a dtype that NumPy here knows, got {raw.decode('latin-1')!r}: {error}") from None
    if dtype.itemsize == 0:
        raise ItemError(f"expected a dtype of at least one byte, got {descr}")
    return dtype


cdef _Signature _parse_header(const uint8_t *head, size_t size):
    cdef vx_npy npy
    cdef const char *expected = NULL
    cdef size_t at
    cdef int64_t nbytes
    cdef _Signature signature = _Signature.__new__(_Signature)
    if not vx_npy_parse(head, size, &npy, &expected, &at):
        raise _bad_header(expected, head, size, at)
    signature.dtype = _dtype_of(head, &npy)
    nbytes = signature.dtype.itemsize
    if not vx_times(&nbytes, npy.reach):
        raise ItemError(f"expected an array of less than 2**63 bytes, got {npy.reach} x {signature.dtype}")
    signature.nbytes = signature.dtype.itemsize * npy.count
    signature.header = size
    signature.ndim = npy.ndim
    signature.fortran = npy.fortran and npy.ndim > 1
    signature.bools = signature.dtype.type_num == cnp.NPY_BOOL
    for i in range(npy.ndim):
        signature.dims[i] = npy.shape[i]
    return signature


cdef _bad_header(const char *expected, const uint8_t *head, size_t size, size_t at):
    came = repr(head[at:min(at + 16, size)]) if at < size else "its end"
    return ItemError(f"expected {expected.decode()} in the .npy header, got {came}", offset=at)


cdef _Signature _text_signature(_Input source, size_t claimed):
    """Decodes and parses the header at the start of `source`."""
    cdef uint8_t head[VX_NPY_MAX_HEADER + 3]
    cdef const char *expected = NULL
    cdef size_t at, size, good, prefix = min(claimed, <size_t>VX_NPY_PREFIX)
    good = vx_active.decode(head, source.data, prefix)
    if good != VX_CHARS(prefix):
        raise _bad_base64(source.data, source.size, good)
    size = vx_npy_size(head, prefix, &expected, &at)
    if size and size > claimed:
        raise ItemError(f"expected a .npy header of {size} bytes, got {claimed}", offset=source.size)
    if size:
        prefix = min(claimed, (size + 2) // 3 * 3)
        good = vx_active.decode(head, source.data, prefix)
        if good != VX_CHARS(prefix):
            raise _bad_base64(source.data, source.size, good)
    try:
        if not size:
            raise _bad_header(expected, head, prefix, at)
        return _parse_header(head, size)
    except ItemError as error:
        if error.offset is not None:
            error.offset = error.offset // 3 * 4  # of the quantum, in characters
        raise


cdef _wrong_size(_Signature signature, size_t got, size_t offset):
    what = f"{signature.dtype} {signature.shape()}"
    return ItemError(f"expected {signature.nbytes} bytes of data for {what}, got {got}", offset=offset)


cdef _check_bools(_Signature signature, const uint8_t *data):
    if signature.bools and not vx_are_bools(data, signature.nbytes):
        raise ItemError("expected the bytes of bools to be 0 or 1, got others")


def decode_numpy(text):
    cdef _Input source = _open_text(text)
    cdef size_t good, claimed = _claimed(source)
    cdef uint8_t *data
    cdef _Signature signature = _text_signature(source, claimed)
    if claimed != signature.header + signature.nbytes:
        raise _wrong_size(signature, claimed - signature.header, source.size)
    array = _new_array(signature, &data)
    good = _decode(data, source.data, signature.header, signature.nbytes)
    if good != <size_t>source.size:
        raise _bad_base64(source.data, source.size, good)
    _check_bools(signature, data)
    return array


cdef _Signature _raw_signature(const uint8_t *doc, size_t left):
    cdef const char *expected = NULL
    cdef size_t at, size = vx_npy_size(doc, left, &expected, &at)
    if not size:
        raise _bad_header(expected, doc, left, at)
    if size > left:
        raise ItemError(f"expected a .npy header of {size} bytes, got {left}", offset=left)
    cdef _Signature signature = _parse_header(doc, size)
    if signature.nbytes > left - size:
        raise _wrong_size(signature, left - size, left)
    return signature


def decode_npy(body):
    cdef _Input source = _open_bytes(body)
    cdef size_t at = 0, size = source.size
    cdef uint8_t *data
    cdef _Signature signature
    arrays = []
    try:
        while at < size or not arrays:
            signature = _raw_signature(source.data + at, size - at)
            array = _new_array(signature, &data)
            memcpy(data, source.data + at + signature.header, signature.nbytes)
            _check_bools(signature, data)
            at += signature.header + signature.nbytes
            arrays.append(array)
    except ItemError as error:
        error.index = len(arrays)
        raise
    return arrays


# -- arrays out

cdef int _LAST_BUILTIN = np.dtype("e").num  # the numbers above are those of dtypes that other packages register


cdef _descr(object dtype):
    """What to write for a dtype: '<f4', a name, or a list of fields."""
    if dtype.hasobject:
        raise TypeError(
            f"an array of {dtype} holds Python objects, which only pickle can carry, and Virtex never unpickles: "
            "convert it to a dtype of numbers or fixed-length strings")
    if dtype.names is not None:
        return _field_descr(dtype)
    if dtype.name in _NAMED and dtype.type.__module__ == "ml_dtypes":
        return dtype.name
    if dtype.kind not in "biufcmMSUV" or dtype.num > _LAST_BUILTIN:
        raise TypeError(f"a .npy document can't carry {dtype}: convert it to numbers or fixed-length strings")
    return dtype.str


cdef _field_descr(object dtype):
    for name in dtype.names:
        descr = _descr(dtype[name].base)
        if isinstance(descr, str) and descr in _NAMED:
            raise TypeError(
                f"a .npy document can't carry a field of {dtype[name]}: NumPy reads such dtypes by name, and alone")
    try:
        return np.lib.format.dtype_to_descr(dtype)
    except ValueError as error:  # fields that overlap
        raise TypeError(f"a .npy document can't carry {dtype}: {error}") from None


cdef bytes _build_header(object dtype, tuple shape, bint fortran):
    """A .npy header of 192 bytes, or of a multiple where that is too short."""
    text = repr({"descr": _descr(dtype), "fortran_order": bool(fortran), "shape": shape})
    encoding, version = ("ascii", 1) if text.isascii() else ("utf-8", 3)
    encoded = text.encode(encoding)
    prefix = 10 if version == 1 else 12
    size = -(-(prefix + len(encoded) + 1) // HEADER_BYTES) * HEADER_BYTES
    if size > VX_NPY_MAX_HEADER or dtype.itemsize == 0 or "\\" in text or len(shape) > VX_NPY_MAX_DIMS:
        raise TypeError(
            f"expected a dtype of at least one byte, whose header fits {VX_NPY_MAX_HEADER} bytes and whose field names "
            f"need no escapes, in at most {VX_NPY_MAX_DIMS} dimensions; got {dtype} {shape}")
    length = (size - prefix).to_bytes(prefix - 8, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + encoded.ljust(size - prefix - 1) + b"\n"


cdef _as_array(object value):
    """An array with one contiguous block of data, and no meaning that .npy would lose."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("a masked array has no .npy form: fill it first, as in array.filled(0)")
    cdef cnp.ndarray array = np.asarray(value)
    if cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_IS_F_CONTIGUOUS(array):
        return array
    return cnp.PyArray_GETCONTIGUOUS(array)


cdef cnp.npy_intp _MAX_CACHED_DIMS = 8


@cython.final
cdef class _Header:
    """The base64 of one header, ready to be copied, and what it was built for."""

    cdef cnp.dtype dtype
    cdef int ndim
    cdef bint fortran
    cdef cnp.npy_intp dims[8]
    cdef bytes text


cdef list _headers = [None] * HEADER_SLOTS


cdef inline bint _is_header_of(_Header header, cnp.ndarray array, bint fortran):
    return (
        <void *>header.dtype == <void *>cnp.PyArray_DESCR(array)
        and header.ndim == cnp.PyArray_NDIM(array)
        and header.fortran == fortran
        and memcmp(header.dims, cnp.PyArray_DIMS(array), header.ndim * sizeof(cnp.npy_intp)) == 0
    )


cdef bytes _header_text(cnp.ndarray array, bint fortran):
    """Cached by identity of the dtype, which the cache keeps alive. Structured ones are not: their names can change."""
    cdef int ndim = cnp.PyArray_NDIM(array)
    cdef uintptr_t mix = <uintptr_t><void *>cnp.PyArray_DESCR(array) >> 4
    cdef _Header header
    if ndim > _MAX_CACHED_DIMS or cnp.PyArray_HASFIELDS(array):
        return encode_bytes(_build_header(array.dtype, (<object>array).shape, fortran)).encode()
    for i in range(ndim):
        mix = mix * 31 + <uintptr_t>cnp.PyArray_DIMS(array)[i]
    mix = (mix ^ mix >> 7 ^ fortran) % HEADER_SLOTS
    found = _headers[mix]
    if found is not None and _is_header_of(<_Header>found, array, fortran):
        return (<_Header>found).text
    header = _Header.__new__(_Header)
    header.text = encode_bytes(_build_header(array.dtype, (<object>array).shape, fortran)).encode()
    header.dtype, header.ndim, header.fortran = array.dtype, ndim, fortran
    memcpy(header.dims, cnp.PyArray_DIMS(array), ndim * sizeof(cnp.npy_intp))
    _headers[mix] = header
    return header.text


def encode_numpy(value):
    cdef cnp.ndarray array
    if type(value) is cnp.ndarray and cnp.PyArray_IS_C_CONTIGUOUS(value):
        array = value
    else:
        array = _as_array(value)
    cdef bytes header = _header_text(array, not cnp.PyArray_IS_C_CONTIGUOUS(array))
    cdef size_t start = len(header), nbytes = cnp.PyArray_NBYTES(array)
    cdef object text = PyUnicode_New(start + VX_CHARS(nbytes), 127)
    cdef uint8_t *to = <uint8_t *>PyUnicode_DATA(text)
    memcpy(to, PyBytes_AS_STRING(header), start)
    _encode(to + start, <const uint8_t *>cnp.PyArray_DATA(array), nbytes)
    return text


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
    if isinstance(values, np.ndarray) and values.ndim:
        rows, shape = [np.asarray(_as_array(values), order="C")], values.shape
    else:
        rows = _equal_rows(values)
        shape = (len(rows), *rows[0].shape)
    cdef bytes header = _build_header(rows[0].dtype, shape, False)
    cdef size_t nbytes = cnp.PyArray_NBYTES(rows[0])
    cdef bytes body = PyBytes_FromStringAndSize(NULL, len(header) + nbytes * len(rows))
    at = len(header)
    memcpy(PyBytes_AS_STRING(body), PyBytes_AS_STRING(header), at)
    for row in rows:
        memcpy(PyBytes_AS_STRING(body) + at, cnp.PyArray_DATA(row), nbytes)
        at += nbytes
    return body

from ..message cimport encode_row

cdef object ndarray
cdef frozenset _SCALARS
cdef _encode(encode, list rows, Py_ssize_t start, Py_ssize_t stop, list done)
cdef _owned(result)
cdef bint _is_flat(dict values) except -1
cdef list _joined(list requests)


cdef class Steps:
    cdef object _handler, _clock, _awaits
    cdef public bint is_async
    cdef public dict seconds


cdef class TensorSteps(Steps):
    cdef bint _shares, _encodes
    cdef object _outputs, _device

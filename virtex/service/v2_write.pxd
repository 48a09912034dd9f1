cimport cython

from ..batch.outputs cimport Rows
from .formats cimport Format
from .seam cimport Response


cdef class Texts:
    cdef readonly list values
    cdef readonly tuple shape


cdef class V2(Format):
    pass


cdef class Known:
    cdef readonly str name
    cdef readonly object dtype
    cdef readonly tuple shape
    cdef readonly bint is_text, is_little
    cdef readonly bytes text, begun


cdef class Asked(V2):
    cdef object _served
    cdef dict _outputs, _known
    cdef bint _binary
    cdef bytes _lead
    cdef Py_ssize_t _latest_length
    cdef tuple _latest_headers

    @cython.locals(given=Rows)
    cpdef Response reply(self, rows, bint in_numbers=*)

    @cython.locals(names=dict, known=Known, text=bytes, pieces=list, blobs=list, left=Py_ssize_t, name=str)
    cpdef Response _answer(self, dict tensors)

    @cython.locals(known=Known, shape=tuple)
    cdef Known _known_of(self, str name, tensor)
    cdef tuple _headers_of(self, Py_ssize_t length)


cpdef bytes blob_of(Known known, tensor)
cdef bytes _in_json(Known known, tensor, bytes head, bytes tail)

cimport cython

from .exchange cimport Admission, Exchange
from .head cimport Head
from .http1 cimport Request
from .writer cimport Turn, Writer

cdef int BODY, END, NEXT_HEAD, REST_OF_HEAD
cdef int HEAD, COUNTED, CHUNKED, UNWANTED, TRAILING, NOTHING


cdef class Reader(Writer):
    cdef object _parser, _body, _peer
    cdef Admission _admission
    cdef bytes _known, _partial
    cdef Request _request
    cdef Head _head
    cdef Py_ssize_t _left
    cdef _read(self, bytes data)
    cdef bytes _take(self, bytes data)

    @cython.locals(own=Exchange)
    cdef bytes _read_head(self, bytes data)

    @cython.locals(own=Exchange)
    cdef _complete(self, Turn turn)
    cpdef bint must_close(self, Turn turn) except -1

cimport cython

from ..service.exchange cimport Exchange, Keeper
from ..service.seam cimport Head
from .grammar cimport Request
from .answers cimport Turn, Writer

cdef int BODY, END, NEXT_HEAD, REST_OF_HEAD
cdef int HEAD, COUNTED, CHUNKED, UNWANTED, TRAILING, NOTHING


cdef class Reader(Writer):
    cdef object _parser, _body, _peer
    cdef Keeper _admission
    cdef bytes _known
    cdef Request _request
    cdef Head _head
    cdef Py_ssize_t _left
    cdef _read(self, bytes data, Py_ssize_t at)

    @cython.locals(steps=cython.int)
    cdef _take_all(self, bytes data, Py_ssize_t at)
    cdef Py_ssize_t _take(self, bytes data, Py_ssize_t at) except -2

    @cython.locals(own=Exchange, is_known=cython.bint, end=Py_ssize_t)
    cdef Py_ssize_t _read_head(self, bytes data, Py_ssize_t at) except -2
    cdef _keep_head(self, Turn turn, Py_ssize_t fields)
    cdef Py_ssize_t _read_length(self, bytes data, Py_ssize_t at) except -2

    @cython.locals(own=Exchange)
    cdef _complete(self, Turn turn)
    cpdef bint must_close(self, Turn turn) except -1

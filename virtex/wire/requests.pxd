cimport cython

from ..service.seam cimport BaseExchange, Head, Gate, Response
from .answers cimport Answers, Turn
from .connections cimport Connections
from .reader cimport Reader
from .waiting cimport Waiting

cdef int A_BODY, A_HEAD, CHUNKS, SKIPS, LINGER
cdef int COUNTED, HEAD, LAST, NEXT, PLACED


cdef class Requests:
    cdef object _connection, _peer
    cdef Connections _connections
    cdef readonly Reader reader
    cdef readonly Waiting waiting
    cdef Answers _answers
    cdef Gate _gate
    cdef Py_ssize_t _most
    cdef bint _rest_is_due
    cdef public bint unread

    @cython.locals(reader=Reader, answers=Answers)
    cpdef receive(self, bytes data, Py_ssize_t at)

    @cython.locals(steps=cython.int, takes=cython.int)
    cdef _take_all(self, bytes data, Py_ssize_t at)

    @cython.locals(
        reader=Reader,
        head=Head,
        turn=Turn,
        gate=Gate,
        exchange=BaseExchange,
        length=Py_ssize_t,
        now=cython.longlong,
    )
    cdef Py_ssize_t _read_head(self, bytes data, Py_ssize_t at) except -2
    cdef Py_ssize_t _read_counted(self, bytes data, Py_ssize_t at) except -2

    @cython.locals(head=Head, exchange=BaseExchange)
    cdef _complete(self, Turn turn, bytes body)
    cdef bint _has_next(self) except -1

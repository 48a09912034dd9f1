cimport cython

from ..service.seam cimport Head
from .answers cimport Answers, Turn
from .connections cimport Connections
from .reader cimport Reader
from .replies cimport Framing
from .requests cimport Requests
from .waiting cimport Waiting

cdef int SKIPPED


cdef class Stream:
    cdef readonly object loop
    cdef readonly Waiting waiting
    cdef object _connection, _ends
    cdef Connections _connections
    cdef Reader _reader
    cdef Answers _answers
    cdef Requests _requests
    cpdef tuple where(self, Head head)

    @cython.locals(answers=Answers, turn=Turn)
    cpdef write(self, Framing framing, bytes piece, bint is_first, bint is_last)

    @cython.locals(answers=Answers, reader=Reader)
    cdef bint _must_close(self, Turn turn) except -1
    cdef _end(self, Turn turn, bint closes, long long now)
    cdef _abandon_body(self, Turn turn, long long now)

cimport cython

from .connections cimport Connections
from .exchange cimport Exchange
from .head cimport Response
from .http1 cimport Request, end_of_head

cdef int BODY, END, FIRST_BYTE, NEXT_HEAD, REST_OF_HEAD
cdef int HEAD, TRAILING, UNWANTED
cdef int CLOSE, KEEP, KEEP_1_0


cdef class Turn:
    cdef public Request request
    cdef public long long begun
    cdef public object exchange, answer


cdef class Writer:
    cdef public object app, transport, writable
    cdef public Connections connections
    cdef public long long watched_until, received
    cdef object _clock, _limits, _ends, _transport_write, _when_answered
    cdef list _turns
    cdef Turn _last, _current
    cdef bytes _rest
    cdef bint _direct, _corked, _flushable, _ended, _unread, _reading, _full, _invites
    cdef long long _keep_alive, _since, _stalled, _unsent, _seen, _seen_at, _paused
    cdef Py_ssize_t _most
    cdef int _wait, _takes_for

    @cython.locals(length=Py_ssize_t, now=cython.longlong, buffer=bytes, turn=Turn, response=Response, own=Exchange)
    cdef bint _answer_alone(self, answered) except -1
    cpdef finish(self, bint last, int status, Py_ssize_t length, long long now)
    cpdef bint must_close(self, Turn turn) except -1

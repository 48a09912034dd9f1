cimport cython

from .connections cimport Connections
from ..service.seam cimport BaseExchange, Head, Response
from .grammar cimport end_of_head, has_body

cdef int BODY, END, FIRST_BYTE, NEXT_HEAD, REST_OF_HEAD
cdef int HEAD, TRAILING, UNWANTED
cdef int CLOSE, KEEP, KEEP_1_0


cdef class Turn:
    cdef public Head request
    cdef public long long begun
    cdef public BaseExchange exchange
    cdef public Response answer
    cdef public Py_ssize_t cost


cdef class Writer:
    cdef public object app, transport, writable
    cdef public Connections connections
    cdef public long long watched_until, received
    cdef object _clock, _limits, _ends, _transport_write, _when_answered
    cdef list _turns
    cdef Turn _last, _current
    cdef bytes _rest, _partial
    cdef Py_ssize_t _rest_at, _head_cost, _buffered, _held
    cdef bint _rest_is_due
    cdef bint _direct, _corked, _flushable, _ended, _unread, _reading, _full, _invites
    cdef long long _keep_alive, _since, _stalled, _unsent, _seen, _seen_at, _paused
    cdef Py_ssize_t _most
    cdef int _wait, _takes_for

    cdef _read(self, bytes data, Py_ssize_t at)
    cdef bint _has_next(self) except -1
    cdef _drop_rest(self)

    @cython.locals(held=Py_ssize_t, turn=Turn)
    cdef _account(self)

    @cython.locals(size=Py_ssize_t)
    cdef _write(self, list out)

    @cython.locals(now=cython.longlong, turn=Turn, answer=Response, shared=Connections, last=cython.bint)
    cdef _write_all(self)

    @cython.locals(length=Py_ssize_t, request=Head)
    cdef bint _render(self, Turn turn, Response response, bint last, long long now, list out) except -1
    cpdef finish(self, bint last, int status, Py_ssize_t length, long long now)
    cpdef bint must_close(self, Turn turn) except -1

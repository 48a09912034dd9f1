cimport cython

from ..service.seam cimport BaseExchange, Head, Response, Waiter
from .connections cimport Connections
from .reader cimport Reader
from .replies cimport Framing, Heads
from .waiting cimport Waiting

cdef int NEXT


cdef class Turn:
    cdef public Head head
    cdef public long long begun
    cdef public BaseExchange exchange
    cdef public Response answer
    cdef public Py_ssize_t cost


cdef class Answers(Waiter):
    cdef object _connection, _transport
    cdef Connections _connections
    cdef Reader _reader
    cdef Waiting _waiting
    cdef char _invites_itself
    cdef Py_ssize_t _held
    cdef readonly list turns
    cdef public Turn current, last, invites
    cdef public char is_corked, is_due
    cdef public Py_ssize_t buffered

    cpdef Turn add(self, Head head, long long now)

    @cython.locals(held=Py_ssize_t, turn=Turn)
    cpdef account(self)
    cpdef write(self)
    cpdef on_answer(self, BaseExchange exchange)

    @cython.locals(now=cython.longlong)
    cdef _write_all(self, long long at)

    @cython.locals(until=cython.longlong)
    cpdef rest_from(self, long long now)

    @cython.locals(
        turn=Turn,
        answer=Response,
        exchange=BaseExchange,
        last=cython.bint,
        final=cython.bint,
        cost=Py_ssize_t,
        size=Py_ssize_t,
    )
    cdef bint _write_turns(self, long long now) except -1

    @cython.locals(heads=Heads, exchange=BaseExchange, head=Head, size=Py_ssize_t, request_id=bytes)
    cdef Py_ssize_t _render(self, Turn turn, Response response, long long now, list out) except -1

    @cython.locals(turn=Turn, exchange=BaseExchange, cost=Py_ssize_t)
    cpdef stream(self, Framing framing, bytes piece, bint is_first, bint is_last, long long now)

    cdef _send(self, list out, Py_ssize_t size)

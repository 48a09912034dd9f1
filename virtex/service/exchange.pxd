cimport cython

from ..batch.batcher cimport Batcher
from ..batch.company cimport Company, Peer
from ..metrics._metrics cimport Cells, Clock
from .bodies cimport Bodies
from .formats cimport Format, Wants
from .promise cimport Promise
from .seam cimport Budget, Gate, Head, Response, Waiter


cdef class Keeper(Gate):
    cdef public object loop, limits, inputs, dtype, kinds, coder
    cdef public Batcher batcher
    cdef public Bodies bodies
    cdef public Company company
    cdef public Cells cells
    cdef public bint is_starting, asks, has_text
    cdef public Py_ssize_t most_bytes, most_values, most_kept
    cdef public long long patience
    cdef Clock _clock
    cpdef admit(self, Exchange exchange)
    cpdef conclude(self, Exchange exchange, Peer peer, int status)
    cpdef long long settle(self, Exchange exchange, Peer peer) except -1


cdef class Exchange(Promise):
    cdef public long long begun, whole, made, deadline
    cdef public bint has_own_time, is_left
    cdef public Py_ssize_t listed
    cdef public Keeper keeper
    cdef Wants _wants
    cdef public object parameters
    cdef object _body, _request
    cdef public tuple lost
    cdef bint _arriving, _in_numbers
    cdef long long _awaited
    cpdef expire(self, long long now)
    cdef _begin(self, Keeper keeper, Head head, Wants wants, long long begun)
    cpdef asker(self)
    cpdef let_go(self)

    @cython.locals(budget=Budget)
    cpdef write(self, bytes data)
    cpdef buffer(self, Py_ssize_t n)
    cpdef await_rest(self, long long now)
    cpdef complete(self, bytes body=*, Waiter waiter=*)
    cpdef bint leaves(self) except -1
    cpdef cancel(self, str reason)
    cpdef hold(self)

    @cython.locals(keeper=Keeper, response=Response, started=cython.longlong, now=cython.longlong)
    cpdef deliver(self, rows, error)
    cpdef answer(self, Response response)

    @cython.locals(reads=Format)
    cdef _admit(self)

    @cython.locals(length=Py_ssize_t, bodies=Budget)
    cdef Response _affordable(self, Response response)
    cpdef Response refuse(self, error)
    cdef Response _finish(self, Response response)
    cpdef answer_as(self, Format writes, long long patience)
    cdef _charge_values(self, Py_ssize_t values, Py_ssize_t wider)
    cdef _drop_body(self)

cimport cython

from ..batch.batcher cimport Batcher
from ..batch.company cimport Company, Peer
from .bodies cimport Bodies
from .seam cimport BaseExchange, Budget, Head, Keeper, Response, Wants


cdef class Exchange(BaseExchange):
    cdef public long long begun
    cdef public Admission admission
    cdef Head _head
    cdef Wants _wants
    cdef object _body, _callback
    cdef bint _arriving
    cdef long long _awaited
    cdef _begin(self, Admission admission, Head head, Wants wants, long long begun)
    cpdef bint done(self)
    cpdef Response result(self)
    cpdef add_done_callback(self, callback)
    cpdef write(self, bytes data)
    cpdef buffer(self, Py_ssize_t n)
    cpdef await_rest(self, long long now)
    cpdef complete(self, bytes body=*, callback=*)
    cpdef bint leaves(self) except -1
    cpdef cancel(self, str reason)
    cpdef hold(self)
    cdef _admit(self)
    cdef Response _reply(self, rows)

    @cython.locals(length=Py_ssize_t, bodies=Budget)
    cdef Response _affordable(self, Response response)
    cdef Response _finish(self, Response response)
    cdef _charge_values(self, Py_ssize_t values, Py_ssize_t wider)
    cdef _drop_body(self)
    cdef _call_back(self)


cdef class Admission(Keeper):
    cdef public object loop, limits, read
    cdef public Batcher batcher
    cdef public Bodies bodies
    cdef public Company company
    cdef public bint is_starting
    cdef public Py_ssize_t most_bytes, most_values, unsettled
    cdef object _clock, _observer, _all_settled, _sweeper
    cdef Py_ssize_t _most_early
    cdef list _early
    cdef long long _sweeps_for

    @cython.locals(exchange=Exchange)
    cpdef open(self, Head head, long long now)
    cpdef admit(self, Exchange exchange)
    cpdef answered(self, Exchange exchange, Response response)
    cpdef long long settled(self, Peer peer) except -1

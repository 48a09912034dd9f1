cimport cython

from ..batch.batcher cimport Batcher
from .bodies cimport Bodies
from ..batch.company cimport Company, Peer
from .seam cimport Head, Response, Wants
from ..batch.ring cimport Ticket


cdef class Exchange(Ticket):
    cdef public long long begun, ended
    cdef public Admission admission
    cdef Head _head
    cdef Wants _wants
    cdef object _body, _callback
    cdef Response _response
    cdef bint _arriving
    cdef long long _awaited
    cdef Py_ssize_t _charged
    cdef readonly Py_ssize_t length
    cdef _begin(self, Admission admission, Head head, Wants wants, long long begun)
    cpdef bint done(self)
    cpdef Response result(self)
    cpdef add_done_callback(self, callback)
    cpdef write(self, bytes data)
    cpdef await_rest(self, long long now)
    cpdef charge(self, Py_ssize_t n)
    cpdef hold(self)
    cpdef release(self)
    cpdef complete(self)
    cdef _admit(self)
    cdef Response _reply(self, rows)

    @cython.locals(length=Py_ssize_t, buffer=bytes, bodies=Bodies)
    cdef Response _measured(self, Response response)
    cdef Response _finish(self, Response response)
    cdef _charge_values(self, Py_ssize_t values, Py_ssize_t wider)
    cdef _charge_also(self, Py_ssize_t n)
    cdef _drop_body(self)
    cdef _uncharge(self)
    cdef _call_back(self)


cdef class Admission:
    cdef public object loop, limits, read
    cdef public Batcher batcher
    cdef public Bodies bodies
    cdef public Company company
    cdef public bint is_open, is_starting
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

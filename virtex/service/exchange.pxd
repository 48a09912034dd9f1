cimport cython

from ..batch.batcher cimport Batcher
from ..batch.company cimport Company, Peer
from ..batch.ring cimport Ticket
from .bodies cimport Bodies
from .formats cimport Format, Wants
from .seam cimport Head, Response


cdef class Keeper:
    cdef public object loop, limits, inputs
    cdef public Batcher batcher
    cdef public Bodies bodies
    cdef public Company company
    cdef public bint is_open, is_starting
    cdef public Py_ssize_t most_bytes, most_values
    cdef object _clock
    cpdef open(self, Head head, long long now)
    cpdef admit(self, Exchange exchange)
    cpdef conclude(self, Exchange exchange, Peer peer, int status)
    cpdef long long settle(self, Peer peer) except -1


cdef class Exchange(Ticket):
    cdef public long long begun, ended
    cdef public Keeper admission
    cdef Head _head
    cdef Wants _wants
    cdef object _body, _callback
    cdef Response _response
    cdef bint _arriving
    cdef long long _awaited
    cdef Py_ssize_t _charged
    cdef readonly Py_ssize_t length
    cdef _begin(self, Keeper admission, Head head, Wants wants, long long begun)
    cpdef bint done(self)
    cpdef Response result(self)
    cpdef add_done_callback(self, callback)
    cpdef write(self, bytes data)
    cpdef await_rest(self, long long now)
    cpdef charge(self, Py_ssize_t n)
    cpdef hold(self)
    cpdef release(self)
    cpdef complete(self)

    @cython.locals(reads=Format)
    cdef _admit(self)

    @cython.locals(length=Py_ssize_t, buffer=bytes, bodies=Bodies)
    cdef Response _measured(self, Response response)
    cpdef Response refuse(self, error)
    cdef Response _finish(self, Response response)
    cdef _charge_values(self, Py_ssize_t values, Py_ssize_t wider)
    cdef _charge_also(self, Py_ssize_t n)
    cdef _drop_body(self)
    cdef _uncharge(self)
    cdef _call_back(self)

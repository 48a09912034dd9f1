cimport cython

from ..batch.batcher cimport Batcher
from ..batch.company cimport Peer
from ..batch.ring cimport Ring
from .bodies cimport Bodies
from .deadlines cimport Deadlines
from .exchange cimport Exchange, Keeper
from .formats cimport Format, Wants
from .seam cimport Head, Response


cdef class Admission(Keeper):
    cdef public Py_ssize_t unsettled
    cdef public object cors, served
    cdef object _observer, _all_settled
    cdef Deadlines _deadlines
    cdef Py_ssize_t _most_early
    cdef list _early
    cdef public dict peers
    cdef Py_ssize_t _peers_kept

    @cython.locals(exchange=Exchange, ring=Ring, bodies=Bodies)
    cpdef open(self, Head head, long long now)

    @cython.locals(writes=Format)
    cpdef Response refuse(self, error, Head head, long long now)

    @cython.locals(now=cython.longlong)
    cpdef admit(self, Exchange exchange)

    @cython.locals(batcher=Batcher, wait=double)
    cdef _check_time(self, Py_ssize_t count, long long now, long long left)

    cdef _watch(self, Exchange exchange)

    @cython.locals(peers=list, peer=Peer)
    cpdef Peer peer(self, client)
    cpdef Response break_off(self, Exchange exchange, error)

    @cython.locals(now=cython.longlong)
    cpdef conclude(self, Exchange exchange, Peer peer, int status)

from ..batch.company cimport Peer
from .admission cimport Admission
from .exchange cimport Exchange
from .seam cimport Head, Waiter


cdef class Wait(Waiter):
    cdef public Exchange exchange
    cdef public object receive, over, watcher


cdef class Shell:
    cdef object _loop, _clock, _timer
    cdef Admission _admission
    cdef bint _remembers
    cdef Py_ssize_t _peers_kept
    cdef public dict peers
    cdef set _waits
    cpdef Peer peer(self, client)

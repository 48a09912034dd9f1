from .admission cimport Admission
from .exchange cimport Exchange
from .seam cimport Waiter


cdef class Wait(Waiter):
    cdef public Exchange exchange
    cdef public object receive, over, watcher


cdef class Shell:
    cdef object _loop, _clock, _timer
    cdef Admission _admission
    cdef set _waits

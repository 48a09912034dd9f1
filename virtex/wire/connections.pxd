from ..service.seam cimport Budget
from .replies cimport Heads


cdef class Connections:
    cdef public object service, limits, clock, loop, members, access, secure, changed
    cdef public Budget budget
    cdef public Heads heads
    cdef public str root_path
    cdef public bint draining, closing, cut_off
    cdef public Py_ssize_t heads_taken
    cdef readonly long long drain_since, keep_alive
    cdef dict _due
    cdef object _timer
    cpdef watch(self, connection, long long deadline)

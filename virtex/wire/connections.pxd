from ..service.seam cimport Budget


cdef class Connections:
    cdef public object app, limits, clock, loop, open, access, secure, changed, tracebacks
    cdef public Budget budget
    cdef public dict state
    cdef public str root_path
    cdef public bint direct, draining, closing
    cdef public Py_ssize_t requests
    cdef readonly long long drain_since
    cdef long long _heads_until
    cdef dict _due, _heads
    cdef object _timer
    cdef bytes _date
    cpdef watch(self, connection, long long deadline)
    cpdef bytes head(self, int status, tuple headers, int connection, long long now)
    cpdef bytes asgi_head(self, start, bint last, int minor, bint counted, long long now)

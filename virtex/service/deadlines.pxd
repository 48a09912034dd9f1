cdef class Deadlines:
    cdef object _loop, _clock, _waiting, _timer
    cdef double _seconds
    cdef readonly long long begun
    cpdef watch(self, long long begun)

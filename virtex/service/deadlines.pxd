cdef class Deadlines:
    cdef object _loop, _clock, _batcher, _waiting, _timer
    cdef list _order
    cdef dict _listed
    cdef Py_ssize_t _count, _most
    cdef readonly long long unlisted
    cpdef watch(self, exchange)
    cpdef add(self, exchange)
    cdef _arm(self, long long due)

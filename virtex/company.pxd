cdef class Peer:
    cdef public Py_ssize_t open
    cdef public long long answered
    cdef Peer _before, _after


cdef class Company:
    cdef long long _window
    cdef public Py_ssize_t arriving
    cdef Peer _first, _last
    cpdef arrives(self, Peer peer)
    cpdef arrived(self)
    cpdef answered(self, Peer peer, long long now)
    cpdef leaves(self, Peer peer)
    cpdef long long until(self, long long now) except -1

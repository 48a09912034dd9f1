cdef class Peer:
    cdef public Py_ssize_t open
    cdef public long long expected_since
    cdef public bint is_known, is_late
    cdef readonly Peer first
    cdef Peer _before, _after


cdef class Company:
    cdef readonly long long window
    cdef Py_ssize_t _wary
    cdef Peer _first, _last
    cpdef arrives(self, Peer peer)
    cpdef awaits(self, Peer peer, long long now)
    cpdef arrived(self, Peer peer, long long took)
    cpdef settled(self, Peer peer, long long now)
    cdef _expect(self, Peer peer, long long now)
    cpdef leaves(self, Peer peer)
    cpdef long long until(self, long long now) except -1

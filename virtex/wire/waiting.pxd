cdef class Waiting:
    cdef object _limits
    # char, not int: an idle connection is to stay small
    cdef public char state
    cdef readonly char takes, clock, of_client, reads_on, reading
    cdef public char full, is_half
    cdef public long long since, received, watched_until
    cdef readonly long long stalled
    cdef long long _seen, _seen_at, _unsent, _paused
    cpdef enter(self, int state)
    cpdef begin_body(self, int state, long long now)
    cpdef bint wants(self, Py_ssize_t rest) except -1

cdef class Cells:
    cdef unsigned long long *_at
    cdef object _words
    cpdef request(self, int status, long long items, long long ns)
    cpdef refused(self, int status)
    cpdef dropped(self, int why)
    cpdef stage(self, int which, long long ns)
    cpdef waited(self, long long ns, long long items)
    cpdef cut(self, int why, long long items)
    cpdef done(self, long long ns, long long retries)
    cpdef queue(self, long long items, long long size)
    cpdef in_flight(self, long long requests)
    cpdef connections(self, int more)

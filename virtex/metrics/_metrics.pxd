cimport cython


@cython.final
cdef class Clock:
    cdef object _f
    cdef bint _is_monotonic
    cpdef long long now(self) except? -1


@cython.final
cdef class Cells:
    cdef unsigned long long *_at
    cdef object _words
    cpdef void request(self, int status, long long items, long long ns) noexcept
    cpdef void decoded(self, long long ns) noexcept
    cpdef void encoded(self, long long ns) noexcept
    cpdef void waited(self, long long ns, long long items) noexcept
    cpdef void done(
        self, long long busy, long long process_request, long long run_inference, long long process_response,
        long long retries) noexcept
    cpdef void queue(self, long long items, long long size) noexcept
    cpdef void in_flight(self, long long requests) noexcept
    cpdef cut(self, str why, long long items)

cdef class Ticket:
    cdef public object items
    cdef public list rows
    cdef public Py_ssize_t count, taken, answered
    cdef public long long born, place
    cdef public bint resolved
    cpdef deliver(self, rows, error)
    cpdef fill(self, rows)
    cpdef resolve(self, rows, error)


cdef class Load:
    cdef public list spans
    cdef public object work
    cdef public Py_ssize_t size
    cdef public bint shuffled
    cpdef release(self)


cdef class Ring:
    cdef public Py_ssize_t capacity, size
    cdef public object _tickets
    cdef Py_ssize_t _gone
    cpdef bint put(self, Ticket ticket) except -1
    cpdef Load take(self, Py_ssize_t limit)
    cpdef Py_ssize_t cancel(self, Ticket ticket) except -1
    cpdef _pass_over(self)

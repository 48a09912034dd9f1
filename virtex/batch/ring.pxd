cimport cython


cdef class Ticket:
    cdef public object items
    cdef public list rows
    cdef public Py_ssize_t count, taken, returned, batch_size, weight
    cdef public long long born, place, cut_at
    cdef public bint resolved, is_pending
    cpdef asker(self)
    cpdef let_go(self)
    cpdef deliver(self, rows, error)
    cpdef fill(self, rows)
    cpdef resolve(self, rows, error)


cdef class Batch:
    cdef public list spans, outcomes, askers
    cdef public object work, slab, laps, cost
    cdef public Py_ssize_t size
    cdef public bint is_shuffled
    cdef public str why
    cdef public long long cut_at

    @cython.locals(ticket=Ticket)
    cpdef thin(self)
    cpdef sort(self)


cdef class Ring:
    cdef public Py_ssize_t capacity, size, held, slot_bytes, pending
    cdef public bint has_costs
    cdef public object _tickets
    cdef Py_ssize_t _gone
    cpdef bint put(self, Ticket ticket) except -1
    cpdef withdraw(self, Ticket ticket)

    @cython.locals(
        ticket=Ticket, spans=list, work=list, left=Py_ssize_t, size=Py_ssize_t, start=Py_ssize_t, stop=Py_ssize_t)
    cpdef Batch take(self, Py_ssize_t limit)
    cpdef refill(self)
    cpdef bint is_ready(self, Py_ssize_t limit) except -1
    cpdef release(self, Batch batch)
    cpdef Py_ssize_t cancel(self, Ticket ticket) except -1
    cpdef _pass_over(self)

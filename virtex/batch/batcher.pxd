cimport cython

from .company cimport Company
from .ring cimport Load, Ring, Ticket


cdef class Batch:
    cdef public Load load
    cdef public object steps
    cdef public str cut
    cdef public long long cut_at
    cdef public list outcomes
    cdef public dict seconds


cdef class Batcher:
    cdef object _loop, _clock, _observer, _executor, _steps, _timer, _newest
    cdef Ring _ring
    cdef list _running
    cdef long long _window, _settles_until
    cdef int _quiet
    cdef bint _scheduled, _draining
    cdef public Py_ssize_t max_batch_size
    cdef public Company company
    cdef readonly object tracebacks
    cdef public long long now

    @cython.locals(ticket=Ticket, span=tuple)
    cdef bint _answer(self, Batch batch) except -1
    cpdef room_for(self, Py_ssize_t count)
    cpdef admit(self, Ticket ticket, long long now)
    cpdef wake(self)

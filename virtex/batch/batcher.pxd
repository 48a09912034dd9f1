cimport cython

from ..metrics._metrics cimport Cells, Clock
from .company cimport Company
from .pace cimport Pace
from .ring cimport Batch, Ring, Ticket
from .steps cimport Laps


cdef class Batcher:
    cdef object _loop, _observer, _executor, _steps, _timer, _newest, _call_soon, _cut_soon, _take_back
    cdef readonly Ring ring
    cdef list _running
    cdef long long _window, _settles_until, _back_at
    cdef Cells _cells
    cdef Clock _clock
    cdef int _quiet
    cdef bint _scheduled, _draining, _asks
    cdef public Py_ssize_t max_batch_size
    cdef public Company company
    cdef readonly object tracebacks, bursts
    cdef public long long now, due, per_item
    cdef readonly Pace pace
    cdef public object expire, judge, on_long

    @cython.locals(ticket=Ticket, outcomes=list, answered=Py_ssize_t)
    cdef Py_ssize_t _answer(self, Batch batch) except -1

    @cython.locals(ticket=Ticket, start=Py_ssize_t, stop=Py_ssize_t, cells=Cells, cut_at=cython.longlong)
    cdef _count(self, Batch batch)

    @cython.locals(ring=Ring)
    cdef _count_queue(self)

    @cython.locals(laps=Laps, newest=Ticket, busy=cython.longlong, took=cython.longlong)
    cdef long long _count_back(self, Batch batch) except? -1

    @cython.locals(ring=Ring)
    cpdef double wait(self, Py_ssize_t count, long long now) except -1

    @cython.locals(pace=Pace, running=list, batch=Batch, i=Py_ssize_t, ahead=double, took=double)
    cdef double _until(self, Py_ssize_t items, long long now) except -1
    cdef _refill(self)

    @cython.locals(ring=Ring)
    cdef bint _is_full(self) except -1

    @cython.locals(ring=Ring)
    cpdef room_for(self, Py_ssize_t count)
    cpdef admit(self, Ticket ticket, long long now)
    cpdef wake(self)

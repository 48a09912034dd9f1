cimport cython

from .outputs cimport is_alone
from .ring cimport Batch, Ring, Ticket


cdef class Slab:
    cdef public list arrays, spans
    cdef public Py_ssize_t filled, live

    @cython.locals(ticket=Ticket, start=Py_ssize_t, stop=Py_ssize_t)
    cdef shrink(self)

    @cython.locals(ticket=Ticket)
    cdef list close(self)


cdef class RowRing(Ring):
    cdef list _names, _tensors
    cdef readonly list _pool
    cdef readonly dict _slabs
    cdef object _new
    cdef bint _has_text
    cdef public Py_ssize_t max_batch_size
    cdef readonly Py_ssize_t slab_bytes, slabs
    cdef Py_ssize_t _front, _next, _rows

    cpdef bint put(self, Ticket ticket) except -1

    @cython.locals(ticket=Ticket)
    cpdef refill(self)

    @cython.locals(slab=Slab, first=Py_ssize_t, start=Py_ssize_t, stop=Py_ssize_t, end=Py_ssize_t)
    cdef _decode(self, Ticket ticket)

    @cython.locals(
        slab=Slab, ticket=Ticket, oldest=Ticket, start=Py_ssize_t, stop=Py_ssize_t, live=Py_ssize_t, counts=list)
    cpdef Batch take(self, Py_ssize_t limit)
    cdef _batch(self, Slab slab, Py_ssize_t live)
    cpdef release(self, Batch batch)

    @cython.locals(taken=Py_ssize_t, end=Py_ssize_t, freed=Py_ssize_t)
    cpdef Py_ssize_t cancel(self, Ticket ticket) except -1

    @cython.locals(slab=Slab)
    cdef _forget_pending(self)

    @cython.locals(slab=Slab, number=Py_ssize_t, base=Py_ssize_t)
    cdef _drop(self, Py_ssize_t first, Py_ssize_t end)

    @cython.locals(slab=Slab)
    cdef Slab _open(self)

    @cython.locals(arrays=list)
    cdef _give_back(self, Slab slab)
    cdef _forget(self, list arrays, Py_ssize_t start, Py_ssize_t stop)

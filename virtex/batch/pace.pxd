cimport cython

cdef double SHARE, DOUBT, CHANCE, STALL, SLACK, SURE


cdef class Pace:
    cdef readonly double full, soon
    cdef Py_ssize_t _batches, _most
    cdef double _items, _took, _spread, _together, _astray

    @cython.locals(share=double, size=double, took=double, expected=double, most=double, larger=double, longer=double)
    cpdef served(self, Py_ssize_t items, long long ns, bint is_full)

    @cython.locals(larger=double, each=double, doubt=double, more=double)
    cpdef double batch(self, double items) except -1

    @cython.locals(batches=double, rest=double, took=double)
    cpdef double wait(self, Py_ssize_t items, double ahead=*, Py_ssize_t running=*) except -1

cimport cython

from .v2_head cimport Call, Place, Served
from .v2_write cimport V2


cdef class Columns:
    cdef readonly bint has_numbers
    cdef list _places, _columns
    cdef bint _is_one
    cdef Py_ssize_t _count


cdef class Infer(V2):
    cdef Served _served
    cdef Py_ssize_t _length

    @cython.locals(call=Call, place=Place, columns=list)
    cpdef source(self, body, inputs, account)

    @cython.locals(length=Py_ssize_t, call=Call)
    cpdef tuple _called(self, body, account)
    cdef _column(self, Place place, body, text, list lists, account)
    cdef _array(self, Place place, body, text, list lists, account)
    cdef list _texts(self, Place place, body, text, account)


cdef _check_room(Place place, Py_ssize_t length, account)

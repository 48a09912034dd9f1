cimport cython

from .seam cimport Response


cdef class Format:
    cpdef items(self, body, account)
    cpdef source(self, body, inputs, account)
    cpdef array(self, body, dtype, account)
    cpdef Response reply(self, rows, bint in_numbers=*)
    cpdef Format in_place(self, Format writes)
    cpdef Response refuse(self, error)


cdef class Json(Format):
    pass


cdef class Npy(Format):
    pass


cdef class Other(Format):
    cdef object why


cdef class Wants:
    cdef readonly Format reads, writes
    cdef readonly str accept, coding, answers
    cdef tuple _latest

    @cython.locals(latest=tuple)
    cpdef Wants answered_as(self, Format writes)

    @cython.locals(values=list)
    cpdef Response reply(self, rows, bint in_numbers=*)

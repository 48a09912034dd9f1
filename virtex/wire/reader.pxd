from ..service.seam cimport Head


cdef class Reader:
    cdef object _limits, _parser
    cdef readonly Head head
    cdef readonly bint is_new
    cdef readonly int cost
    cdef bytes _known, _partial
    cdef int _kept
    cdef public Py_ssize_t left, rest_at
    cdef public object body
    cdef public bytes rest
    cpdef Py_ssize_t held(self) except -1
    cpdef Py_ssize_t read_head(self, bytes data, Py_ssize_t at) except -2
    cpdef bytes read_counted(self, bytes data, Py_ssize_t at)
    cpdef bint has_begun(self) except -1
    cpdef bint is_over(self) except -1

from .seam cimport Budget


cdef class Bodies(Budget):
    cdef readonly Py_ssize_t kept
    cdef Py_ssize_t _most
    cdef object _life
    cdef dict _free

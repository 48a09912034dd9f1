from .seam cimport Budget


cdef class Bodies(Budget):
    cdef readonly Py_ssize_t kept
    cdef dict _free

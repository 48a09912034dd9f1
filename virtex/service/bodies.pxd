from .seam cimport Budget


cdef class Bodies(Budget):
    cdef readonly Py_ssize_t most, kept
    cdef readonly str why
    cdef object _said, _life
    cdef dict _free

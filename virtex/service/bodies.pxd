cdef class Bodies:
    cdef public Py_ssize_t budget, held
    cdef readonly Py_ssize_t kept
    cdef dict _free
    cpdef charge(self, Py_ssize_t n)
    cpdef bint is_full(self) except -1

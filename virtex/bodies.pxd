cdef class Bodies:
    cdef public Py_ssize_t budget, held
    cdef Py_ssize_t _kept
    cdef public dict _free
    cpdef charge(self, Py_ssize_t n)

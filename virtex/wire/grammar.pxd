cdef list _ENDS
cpdef bytes end_of_head(Py_ssize_t length)
cpdef bint has_body(int status)

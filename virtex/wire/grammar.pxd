cdef class Request:
    cdef public bint expects, is_usual, keep_alive
    cdef public list headers
    cdef public object length
    cdef public str method, path
    cdef public int minor
    cdef public bytes target, raw_path, query


cdef list _ENDS
cpdef bytes end_of_head(Py_ssize_t length)
cpdef bint has_body(int status)

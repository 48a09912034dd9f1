cdef object ndarray
cpdef on_host(outputs)
cpdef list rows_of(outputs, Py_ssize_t count)
cpdef bint has_errors(list outputs) except -1
cdef bint _has_rows(outputs) except -1
cpdef bint is_alone(arrays, key) except -1
cdef Py_ssize_t _references(arrays, key) except -1
cdef _array_out(value, Py_ssize_t count, str name, declared)
cpdef Rows as_rows(outputs, Py_ssize_t count, declared)


cdef class Rows:
    cdef public dict _arrays
    cdef dict _values
    cdef Py_ssize_t _start, _stop
    cpdef dict arrays(self, str nameless=*)
    cpdef Rows part(self, Py_ssize_t start, Py_ssize_t stop)
    cpdef json(self, bint in_numbers=*)
    cdef _json(self, bint in_numbers)
    cdef _numbers(self)
    cdef _view(self, str name)
    cdef list _column(self, str name, bint in_numbers)
    cdef list _values_of(self, str name)

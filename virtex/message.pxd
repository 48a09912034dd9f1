cpdef bytes encode_data(list rows, str step=*)
cpdef encode_row(row)
cdef bytes _dumps(value)

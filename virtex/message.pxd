cpdef bytes encode_data(list rows, str step=*)
cpdef encode_row(row, str step=*)
cdef bytes _dumps(value)

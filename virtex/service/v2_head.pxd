from .v2_write cimport Asked


cdef class Place:
    cdef readonly str name, datatype, kind
    cdef readonly tuple shape
    cdef readonly object at, size, each, count
    cdef public object signature, text


cdef class Call:
    cdef readonly list places
    cdef readonly object behind
    cdef readonly Asked asked
    cdef readonly dict parameters
    cdef readonly long long patience


cdef class Served:
    cdef readonly str name
    cdef readonly dict inputs, signatures
    cdef readonly object dtype, usual
    cdef readonly bint is_one
    cdef readonly list missing
    cdef public list outputs
    cdef list _in_order(self, list places)
    cdef _check_declared(self, Place place, tensor)

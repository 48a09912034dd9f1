from .admission cimport Admission
from .exchange cimport Exchange
from .formats cimport Format
from .seam cimport Response


cdef class Values(Response):
    cdef readonly list values
    cdef readonly object error


cdef class Objects(Format):
    pass


cdef class Submission(Exchange):
    cdef object _over
    cpdef put(self, Admission keeper, list items, parameters, double timeout)
    cpdef wait(self)
    cpdef end(self)
    cpdef Response refuse(self, error)
    cdef _call_back(self)


cdef object MaskedArray
cdef _check_no_mask(item, index)
cpdef Submission submission(Admission admission, list items, parameters, timeout)

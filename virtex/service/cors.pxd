from .formats cimport Format
from .seam cimport Response


cdef class Crossing(Format):
    cdef Format _writes
    cdef tuple _added, _before, _after
    cpdef tuple joined(self, tuple headers)

from .formats cimport Format
from .seam cimport Response


cdef class Texts:
    cdef readonly list values
    cdef readonly tuple shape


cdef class V2(Format):
    pass


cdef class Asked(V2):
    cdef object _served
    cdef dict _outputs
    cdef bint _binary
    cdef bytes _lead, _latest_text
    cdef tuple _latest
    cdef Response _answer(self, dict tensors)
    cdef bytes _text_of(self, str name, tensor)

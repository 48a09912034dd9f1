cimport cython

from ..service.seam cimport Response
from ..service.v2_write cimport V2, Asked


cdef class Refusing(V2):
    pass


cdef class Answer(Asked):
    cdef object _model
    cdef tuple _wanted
    cdef bytes _head
    cpdef Response _answer(self, dict tensors)
    cpdef Answer with_id(self, bytes id)

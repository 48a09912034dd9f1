cimport cython

from ..service.v2_head cimport Call, Place, Served
from ..service.v2_read cimport Infer
from .cut cimport Cut
from .writing cimport Answer


cdef class GrpcInfer(Infer):
    cdef Served _model
    cdef object _usual

    @cython.locals(found=Cut, start=Py_ssize_t, call=Call, answer=Answer)
    cpdef tuple _called(self, body, account)

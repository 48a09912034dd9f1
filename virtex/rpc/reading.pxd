cimport cython

from ..service.v2_head cimport Call
from ..service.v2_read cimport Infer
from .cut cimport Cut
from .writing cimport Answer


cdef class GrpcInfer(Infer):
    cdef object _admission, _usual

    @cython.locals(found=Cut, start=Py_ssize_t, call=Call, answer=Answer)
    cpdef tuple _called(self, body, account)

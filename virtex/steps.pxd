cdef class Steps:
    cdef object _handler, _clock, _awaits
    cdef public bint is_async
    cdef public dict seconds


cdef class TensorSteps(Steps):
    cdef bint _shares, _encodes
    cdef object _outputs, _device

from .seam cimport BaseExchange, Response, Waiter


cdef class Promise(BaseExchange):
    cdef Waiter _waiter
    cpdef bint done(self)
    cpdef Response result(self)
    cpdef tell(self, Waiter waiter)

cimport cython

from .seam cimport BaseExchange, Head, Response, Waiter


cdef class Promise(BaseExchange):
    cdef Head _head
    cdef Waiter _waiter
    cpdef bytes name(self)
    cpdef bint done(self)
    cpdef Response result(self)
    cpdef tell(self, Waiter waiter)

    @cython.locals(waiter=Waiter)
    cdef _call_back(self)

cimport cython

from ..service.seam cimport BaseExchange, Budget, Head, Waiter
from .replies cimport Framing, Start, framed
from .stream cimport Stream


cdef bytes _bytes(value)
cdef tuple _pairs(headers)


@cython.locals(exchange=AsgiExchange)
cpdef AsgiExchange taken(host, Budget budget, Head head)


cdef class AsgiExchange(BaseExchange):
    cdef object _host, _waiter, _task
    cdef Head _head
    cdef Stream _stream
    cdef Start _start
    cdef Framing _framing
    cdef list _body
    cdef bint _complete, _half, _gone, _told, _done
    cdef _open(self, host, Budget budget, Head head)
    cpdef write(self, bytes data)
    cpdef complete(self, bytes body=*, Waiter waiter=*)
    cpdef cancel(self, str reason)
    cpdef bint leaves(self) except -1
    cdef _wake(self)
    cdef _drop_body(self)
    cdef dict _scope(self)
    cdef dict _take_body(self)
    cdef tuple _usual(self, tuple headers)
    cdef _send_body(self, message)
    cdef _emit(self, Framing framing, bytes piece, bint end)

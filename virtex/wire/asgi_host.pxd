from ..service.seam cimport BaseExchange, Head
from .grammar cimport end_of_head, has_body
from .answers cimport Turn, Writer


cdef class Start:
    cdef readonly int status
    cdef readonly bytes lines
    cdef readonly frozenset names
    cdef readonly Py_ssize_t length
    cdef readonly bint closes


cdef bytes _bytes(value)
cdef tuple _pairs(headers)


cdef class AsgiExchange(BaseExchange):
    cdef Writer _connection
    cdef object _waiter, _task
    cdef Start _start
    cdef Turn _turn
    cdef Head _request
    cdef list _body
    cdef Py_ssize_t _sent, _left
    cdef bint _complete, _gone, _told, _response_done, _chunked, _last
    cpdef write(self, bytes data)
    cpdef complete(self, bytes body=*, callback=*)
    cpdef cancel(self, str reason)
    cpdef bint leaves(self) except -1
    cdef _wake(self)
    cdef _drop_body(self)
    cdef dict _scope(self)
    cdef dict _take_body(self)
    cdef _send_body(self, message)
    cdef _emit(self, bytes data, bint end, long long now)
    cdef bytes _render(self, Start start, bytes body, bint end, long long now)
    cdef bytes _frame(self, bytes body, bint end)

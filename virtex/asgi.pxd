from .http1 cimport Request
from .writer cimport Turn


cdef class AsgiExchange:
    cdef object _connection, _waiter, _start, _left, _task
    cdef Turn _turn
    cdef Request _request
    cdef list _body
    cdef Py_ssize_t _held, _sent
    cdef bint _complete, _gone, _response_done, _chunked, _last
    cdef public bint started
    cpdef write(self, bytes data)
    cpdef complete(self)
    cpdef cancel(self, str reason)
    cdef _wake(self)
    cdef dict _scope(self)
    cdef dict _take_body(self)
    cdef _begin(self, message)
    cdef _send_body(self, message)
    cdef _emit(self, bytes data, bint end)
    cdef bytes _frame(self, bytes body, bint end)

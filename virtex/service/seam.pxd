cimport cython

from ..batch.ring cimport Ticket


cdef class Head:
    cdef public str method, path
    cdef public list headers
    cdef public object length, peer, wants, service
    cdef public bytes request_id, target, raw_path, query
    cdef public int minor
    cdef public bint keep_alive, expects
    cdef public long long patience


cpdef bytes id_in(list headers)
cpdef patience_in(list headers)


cdef class Ids:
    cdef readonly bytes first
    cdef public int last
    cdef bytes _process
    cdef long long _turns
    cpdef turn(self)


cdef class Response:
    cdef public int status
    cdef public tuple headers
    cdef public list buffers
    cdef readonly Py_ssize_t size
    cdef public bytes request_id


@cython.locals(size=Py_ssize_t, buffer=bytes)
cdef Py_ssize_t size_of(list buffers) except -1


cdef class Budget:
    cdef public Py_ssize_t budget, held
    cdef public int parts
    cpdef charge(self, Py_ssize_t n)


cdef class Waiter:
    cpdef on_answer(self, BaseExchange exchange)


cdef class BaseExchange(Ticket):
    cdef public Budget budget
    cdef public Gate gate
    cdef public Response response
    cdef public long long ended
    cdef public Py_ssize_t charged
    cdef public bint started
    cdef public bytes request_id
    cpdef begin(self, Budget budget, Gate gate)
    cpdef write(self, bytes data)
    cpdef buffer(self, Py_ssize_t n)
    cpdef charge(self, Py_ssize_t n)
    cpdef await_rest(self, long long now)
    cpdef complete(self, bytes body=*, Waiter waiter=*)
    cpdef bint leaves(self) except -1
    cpdef cancel(self, str reason)
    cpdef hold(self)
    cpdef release(self)


cdef class Gate:
    cdef public bint is_open
    cpdef open(self, Head head, long long now)

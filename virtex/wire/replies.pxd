cimport cython

from ..service.seam cimport Head, Ids, Response


cdef int LAST
cdef list _ENDS, _LAST
cpdef bytes end_of_head(Py_ssize_t length)
cpdef bint has_body(int status)
cpdef int says_of(bint closes, int minor)


@cython.locals(framing=Framing)
cpdef Framing framed(Start start, Head head, bytes body, bint end, bytes request_id=*)


cdef class Start:
    cdef readonly int status
    cdef readonly bytes lines
    cdef readonly frozenset names
    cdef readonly Py_ssize_t length
    cdef readonly bint closes


cdef class Framing:
    cdef readonly Start start
    cdef readonly int minor
    cdef public bint closes
    cdef readonly bint counts
    cdef readonly bytes told, begins
    cdef readonly Py_ssize_t left, sent
    cdef bint _is_head, _chunked
    cdef _begin(self, Start start, Head head, bytes body, bint end)
    cdef bytes _first(self, bytes body, bint end)
    cpdef bytes piece(self, bytes body, bint end)


cdef class Heads:
    cdef dict _heads
    cdef long long _until
    cdef bytes _date, _latest, _latest_first, _named
    cdef tuple _latest_headers
    cdef int _latest_status, _latest_says
    cdef Ids _ids
    cdef bytes _rendered(self, int status, tuple headers, int says)

    @cython.locals(has=cython.bint, end=bytes, size=Py_ssize_t)
    cdef Py_ssize_t _append_rest(self, Response response, Head request, bytes request_id, list out) except -1

    @cython.locals(
        ids=Ids, status=cython.int, says=cython.int, headers=tuple, last=bytes, end=bytes, size=Py_ssize_t)
    cpdef Py_ssize_t render(
        self, Response response, Head request, bint closes, long long now, list out, bytes request_id=*) except -1
    cpdef bytes streamed(self, Framing framing, long long now)

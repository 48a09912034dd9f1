cimport cython

from ..message cimport encode_row
from ..metrics._metrics cimport Clock
from .outputs cimport rows_of

cdef object ndarray
cdef frozenset _SCALARS
cdef _encode(encode, list rows, Py_ssize_t start, Py_ssize_t stop, list done, list asked)
cdef _owned(result)
cdef bint _is_flat(dict values) except -1
cdef list _counts(list requests)


cdef class Laps:
    cdef public long long process_request, run_inference, process_response, retries
    cdef public bint systemic


cdef class Steps:
    cdef object _handler, _awaits
    cdef frozenset _asking
    cdef Clock _clock
    cdef public bint is_async, asks, isolates, came
    cdef public Py_ssize_t fits, proven
    cdef public Laps laps

    @cython.locals(counts=list, asked=list, count=Py_ssize_t)
    cpdef list run(self, requests, list askers=*)
    cpdef joined(self, list requests)
    cdef _call(self, str name, argument, list asked)
    cpdef long long _now(self) except? -1

    @cython.locals(laps=Laps, took=cython.longlong)
    cpdef _lap(self, str name, long long started)
    cdef list _rows_of(self, outputs, Py_ssize_t count)
    cdef list _encoded(self, list rows, list counts, list asked)

cimport cython

from ..message cimport encode_row
from ..metrics._metrics cimport Clock
from .outputs cimport Rows, as_rows, on_host, rows_of

cdef object ndarray
cdef frozenset _SCALARS
cdef _encode(encode, list rows, Py_ssize_t start, Py_ssize_t stop, list done, list asked)
cdef _owned(result)
cdef bint _is_flat(dict values) except -1
cdef list _counts(list requests)
cdef list _parts(Rows rows, list counts)


cdef class Laps:
    cdef public long long process_request, run_inference, process_response, retries
    cdef public bint systemic


cdef class Steps:
    cdef object _handler, _awaits
    cdef frozenset _asking
    cdef Clock _clock
    cdef public bint is_async, asks
    cdef public Laps laps
    cpdef list run(self, requests, list askers=*)
    cpdef joined(self, list requests)
    cdef _call(self, str name, argument, list asked)
    cpdef long long _now(self) except? -1

    @cython.locals(laps=Laps, took=cython.longlong)
    cpdef _lap(self, str name, long long started)
    cdef list _computed(self, batch, list counts, list asked)
    cdef list _encoded(self, list rows, list counts, list asked)


cdef class TensorSteps(Steps):
    cdef bint _shares, _encodes
    cdef object _outputs, _device
    cpdef list run(self, work, list askers=*)
    cdef _inferred(self, batch, list asked)
    cdef _rows(self, outputs, Py_ssize_t count)

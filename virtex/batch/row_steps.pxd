cimport cython

from .outputs cimport Rows, as_rows, has_errors, on_host
from .steps cimport Laps, Steps

cdef list _parts(Rows rows, list counts)


cdef class TensorSteps(Steps):
    cdef readonly bint encodes
    cdef readonly object device
    cdef bint _shares, _has_told
    cdef object _inputs, _outputs

    @cython.locals(counts=list, asked=list)
    cpdef list run(self, work, list askers=*)
    cdef _inferred(self, batch, list asked)

    @cython.locals(rows=Rows)
    cdef list _answers(self, outputs, list counts, bint is_part=*)

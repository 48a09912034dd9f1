cimport cython

from .outputs cimport Rows, as_rows, has_errors, on_host
from .steps cimport Laps, Steps

cdef list _parts(Rows rows, list counts)


cdef class TensorSteps(Steps):
    cdef bint _shares, _encodes, _has_told
    cdef object _inputs, _outputs, _device

    @cython.locals(counts=list, asked=list)
    cpdef list run(self, work, list askers=*)
    cdef _inferred(self, batch, list asked)

    @cython.locals(rows=Rows)
    cdef list _answers(self, outputs, list counts, bint is_part=*)

cimport cython


cdef class Cut:
    cdef readonly bytes head, id
    cdef readonly tuple raws


@cython.locals(
    size=Py_ssize_t, at=Py_ssize_t, start=Py_ssize_t, begin=Py_ssize_t, end=Py_ssize_t, length=Py_ssize_t,
    left=Py_ssize_t, tag=int, head=list, request_id=bytes, raws=list
)
cpdef cut(bytes message)


@cython.locals(
    size=Py_ssize_t, at=Py_ssize_t, found=Py_ssize_t, values=Py_ssize_t, stop=Py_ssize_t, until=Py_ssize_t,
    begin=Py_ssize_t, length=Py_ssize_t, end=Py_ssize_t, there=Py_ssize_t, tag=int, kind=int
)
cpdef tuple counted(bytes message, Py_ssize_t most_beside, Py_ssize_t most_values)


@cython.locals(value=Py_ssize_t, shift=Py_ssize_t, byte=Py_ssize_t)
cdef tuple _varint(bytes message, Py_ssize_t at)


@cython.locals(said=bytearray)
cpdef bytes length_of(Py_ssize_t n)

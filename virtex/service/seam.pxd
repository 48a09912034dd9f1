from ..batch.company cimport Peer


cdef class Head:
    cdef public str method, path
    cdef public list headers
    cdef public object length, wants
    cdef public Peer peer


cdef class Response:
    cdef public int status
    cdef public tuple headers
    cdef public list buffers

from .company cimport Peer


cdef class Head:
    cdef public str method, path
    cdef public object headers, length, wants
    cdef public Peer peer


cdef class Response:
    cdef public object status
    cdef public tuple headers
    cdef public list buffers

from .answers cimport Answers
from .connections cimport Connections
from .reader cimport Reader
from .requests cimport Requests
from .waiting cimport Waiting

cdef int DROPPED, HEAD, IDLE, KEEP_ALIVE, LINGER, NEXT, SKIPPED


cdef class Connection:
    cdef public object transport
    cdef readonly Connections connections
    cdef readonly Reader reader
    cdef readonly Waiting waiting
    cdef readonly Answers answers
    cdef readonly Requests requests
    cdef object _ends, _writable

# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The counting itself: a call from C for what happened, a few aligned words written.

Rules: one process writes a block, under the GIL; whoever reads it may see a state between two stores. Where a metric
has its cells, schema.py says.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from .schema import BY_NAME, CODES, PLACES

cdef extern from *:
    """
    static unsigned long long take_one(unsigned long long *at) { return __atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST); }
    static int bits_of(unsigned long long n) { return n ? 64 - __builtin_clzll(n) : 0; }
    """
    unsigned long long take_one(unsigned long long *at) nogil
    int bits_of(unsigned long long n) nogil

cdef unsigned long long _SECONDS[32]  # the bounds in ns
cdef int _N_SECONDS = 0
cdef int _N_SIZES = 0
cdef int _LEAST_CODE = CODES.start
cdef int _MOST_CODE = CODES.stop - 1


cdef int _place(str name, str label="") except -1:
    return PLACES["virtex_" + name, label]


def _read_bounds():
    global _N_SECONDS, _N_SIZES
    for bound in BY_NAME["virtex_queue_wait_seconds"].bounds:
        _SECONDS[_N_SECONDS] = round(bound * 1e9)
        _N_SECONDS += 1
    _N_SIZES = len(BY_NAME["virtex_batch_size"].bounds)


_read_bounds()

cdef int _REQUESTS = _place("requests_total", str(CODES.start))
cdef int _QUERIES = _place("queries_total")
cdef int _REQUEST_QUERIES = _place("request_queries")
cdef int _DURATION = _place("request_duration_seconds")
cdef int _WAIT = _place("queue_wait_seconds")
cdef int _STAGE = _place("stage_duration_seconds", "decode")
cdef int _BATCH_SIZE = _place("batch_size")
cdef int _BATCHES = _place("batches_total", "full")
cdef int _QUEUE_ITEMS = _place("queue_items")
cdef int _QUEUE_BYTES = _place("queue_bytes")
cdef int _IN_FLIGHT = _place("requests_in_flight")
cdef int _DROPPED = _place("dropped_requests_total", "full")
cdef int _RETRIES = _place("retries_total")
cdef int _BUSY = _place("executor_busy_seconds_total")
cdef int _CONNECTIONS = _place("open_connections")
cdef int _STAGE_CELLS = _N_SECONDS + 2


cdef inline void _observe_seconds(unsigned long long *cells, long long ns, unsigned long long times) noexcept:
    cdef int i = 0
    if ns < 0:
        ns = 0
    while i < _N_SECONDS and <unsigned long long>ns > _SECONDS[i]:
        i += 1
    cells[i] += times
    cells[_N_SECONDS + 1] += ns * times


cdef inline void _observe_size(unsigned long long *cells, unsigned long long n) noexcept:
    cdef int i = bits_of(n - 1) if n > 1 else 0  # the bounds are 1, 2, 4 ...
    cells[i if i < _N_SIZES else _N_SIZES] += 1
    cells[_N_SIZES + 1] += n


def next_number(words):
    """How often it was called on this memory before, by any process."""
    cdef Py_buffer view
    PyObject_GetBuffer(words, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    number = take_one(<unsigned long long*>view.buf)
    PyBuffer_Release(&view)
    return number


cdef class Cells:
    """The cells of one block, as who counts sees them. words: the block, a memoryview of 64-bit words."""

    def __init__(self, words):
        self.move(words)

    def move(self, words):
        """Count in another block from now on."""
        cdef Py_buffer view
        PyObject_GetBuffer(words, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        self._at = <unsigned long long*>view.buf
        self._words = words  # keeps the memory
        PyBuffer_Release(&view)

    cpdef request(self, int status, long long items, long long ns):
        """A request was answered, `ns` after its head. items: how many it held; -1: it was no message."""
        cdef unsigned long long *at = self._at
        self.refused(status)
        _observe_seconds(at + _DURATION, ns, 1)
        if status == 200 and items >= 0:
            at[_QUERIES] += items
            _observe_size(at + _REQUEST_QUERIES, items)

    cpdef refused(self, int status):
        """A request was refused of which nobody knows when it began."""
        if _LEAST_CODE <= status <= _MOST_CODE:
            self._at[_REQUESTS + status - _LEAST_CODE] += 1

    cpdef dropped(self, int why):
        """It got no answer of the model. why: index in DROPS."""
        self._at[_DROPPED + why] += 1

    cpdef stage(self, int which, long long ns):
        """A stage was gone through. which: index in STAGES."""
        _observe_seconds(self._at + _STAGE + which * _STAGE_CELLS, ns, 1)

    cpdef waited(self, long long ns, long long items):
        """So many items waited so long for their batch."""
        _observe_seconds(self._at + _WAIT, ns, items)

    cpdef cut(self, int why, long long items):
        """A batch was cut. why: index in CUTS."""
        self._at[_BATCHES + why] += 1
        _observe_size(self._at + _BATCH_SIZE, items)

    cpdef done(self, long long ns, long long retries):
        """A batch came back, which was with the executor for so long."""
        self._at[_BUSY] += ns
        self._at[_RETRIES] += retries

    cpdef queue(self, long long items, long long size):
        """So much waits now. size: bytes."""
        self._at[_QUEUE_ITEMS] = items
        self._at[_QUEUE_BYTES] = size

    cpdef in_flight(self, long long requests):
        """So many requests have no answer now."""
        self._at[_IN_FLIGHT] = requests

    cpdef connections(self, int more):
        """A connection more, or with -1 one less."""
        if more > 0 or self._at[_CONNECTIONS]:  # none was counted here that was open before use()
            self._at[_CONNECTIONS] += more

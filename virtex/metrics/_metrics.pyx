# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The counting itself: a call from C for what happened, a few aligned words written; and a clock that C reads.

Rules: one process writes a block, under the GIL; whoever reads it may see a state between two stores. Where a metric
has its cells, schema.py says.
"""

import sys
import time

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from .schema import BY_NAME, CELLS, CODES, CUTS, DROPS, ERRORS, PLACES, STAGES

cdef extern from *:
    """
    static unsigned long long take_one(unsigned long long *at) { return __atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST); }
    #ifdef __linux__
    #include <time.h>
    static long long monotonic(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000000000LL + t.tv_nsec;
    }
    #else
    static long long monotonic(void) { return 0; }
    #endif
    static int bits_of(unsigned long long n) { return n ? 64 - __builtin_clzll(n) : 0; }
    """
    unsigned long long take_one(unsigned long long *at) nogil
    int bits_of(unsigned long long n) nogil
    long long monotonic() nogil

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
cdef int _QUEUE_ITEMS = _place("queue_items")
cdef int _QUEUE_BYTES = _place("queue_bytes")
cdef int _IN_FLIGHT = _place("requests_in_flight")
cdef int _RETRIES = _place("retries_total")
cdef int _BUSY = _place("executor_busy_seconds_total")
cdef int _CONNECTIONS = _place("open_connections")
cdef int _DECODE = STAGES.index("decode")
cdef int _PROCESS_REQUEST = STAGES.index("process_request")
cdef int _RUN_INFERENCE = STAGES.index("run_inference")
cdef int _PROCESS_RESPONSE = STAGES.index("process_response")
cdef int _ENCODE = STAGES.index("encode")
cdef dict _BATCHES = {cut: _place("batches_total", cut) for cut in CUTS}
cdef dict _LOST = {reason: _place("dropped_requests_total", reason) for reason in DROPS}
_LOST.update({reason: _place("request_errors_total", reason) for reason in ERRORS})


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


cdef inline void _observe_stage(unsigned long long *cells, int which, long long ns) noexcept:
    _observe_seconds(cells + _STAGE + which * (_N_SECONDS + 2), ns, 1)


def next_number(words):
    """How often it was called on this memory before, by any process."""
    cdef Py_buffer view
    PyObject_GetBuffer(words, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    number = take_one(<unsigned long long*>view.buf)
    PyBuffer_Release(&view)
    return number


def unseen():
    """Memory for a block that stands on no board."""
    return memoryview(bytearray(8 * CELLS)).cast("Q")


_C_READS_IT = sys.platform == "linux" and time.get_clock_info("perf_counter").implementation == (
    "clock_gettime(CLOCK_MONOTONIC)")


@cython.final
cdef class Clock:
    """A function that gives nanoseconds, called; time.perf_counter_ns without the detour through Python."""

    def __init__(self, f):
        self._f = f
        self._is_monotonic = f is time.perf_counter_ns and _C_READS_IT

    cpdef long long now(self) except? -1:
        """Nanoseconds."""
        if self._is_monotonic:
            return monotonic()
        return self._f()


@cython.final
cdef class Cells:
    """The cells of one block, as who counts sees them. words: the block; None: what is counted nobody sees."""

    def __init__(self, words=None):
        self.move(unseen() if words is None else words)

    def move(self, words):
        """Count in another block from now on."""
        cdef Py_buffer view
        PyObject_GetBuffer(words, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        self._at = <unsigned long long*>view.buf
        self._words = words  # keeps the memory
        PyBuffer_Release(&view)

    # ---- requests

    cpdef void request(self, int status, long long items, long long ns) noexcept:
        """A request is answered, `ns` after the end of its head. items: how many it held; -1: it was no message."""
        cdef unsigned long long *at = self._at
        if _LEAST_CODE <= status <= _MOST_CODE:
            at[_REQUESTS + status - _LEAST_CODE] += 1
        _observe_seconds(at + _DURATION, ns, 1)
        if status == 200 and items >= 0:
            at[_QUERIES] += items
            _observe_size(at + _REQUEST_QUERIES, items)

    def refused(self, int status):
        """A request is refused of which nobody knows when it began."""
        if _LEAST_CODE <= status <= _MOST_CODE:
            self._at[_REQUESTS + status - _LEAST_CODE] += 1

    def lost(self, str reason):
        """A request ended otherwise than with rows. reason: one of DROPS or ERRORS."""
        self._at[<int>_LOST[reason]] += 1

    cpdef void decoded(self, long long ns) noexcept:
        """The items of a request were read."""
        _observe_stage(self._at, _DECODE, ns)

    cpdef void encoded(self, long long ns) noexcept:
        """The answer of a request was written down."""
        _observe_stage(self._at, _ENCODE, ns)

    # ---- batches

    cpdef cut(self, str why, long long items):
        """A batch is cut. why: one of CUTS."""
        self._at[<int>_BATCHES[why]] += 1
        _observe_size(self._at + _BATCH_SIZE, items)

    cpdef void waited(self, long long ns, long long items) noexcept:
        """So many items waited so long for their batch."""
        _observe_seconds(self._at + _WAIT, ns, items)

    cpdef void done(
        self, long long busy, long long process_request, long long run_inference, long long process_response,
            long long retries) noexcept:
        """A batch is back. busy: ns for which the executor had it, and no other before it. retries: repeated calls.

        The rest: ns that the methods took, -1 for one that was not run.
        """
        cdef unsigned long long *at = self._at
        at[_BUSY] += busy
        at[_RETRIES] += retries
        if process_request >= 0:
            _observe_stage(at, _PROCESS_REQUEST, process_request)
        if run_inference >= 0:
            _observe_stage(at, _RUN_INFERENCE, run_inference)
        if process_response >= 0:
            _observe_stage(at, _PROCESS_RESPONSE, process_response)

    # ---- what there is now

    cpdef void queue(self, long long items, long long size) noexcept:
        """So much waits. size: bytes."""
        self._at[_QUEUE_ITEMS] = items
        self._at[_QUEUE_BYTES] = size

    cpdef void in_flight(self, long long requests) noexcept:
        """So many requests are taken and not answered."""
        self._at[_IN_FLIGHT] = requests

    def connections(self, int more):
        """A connection is opened, or, with -1, closed."""
        if more > 0 or self._at[_CONNECTIONS]:  # it was opened before this block was counted in
            self._at[_CONNECTIONS] += more

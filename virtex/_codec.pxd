# What the codec takes from C: CPython, NumPy, and the headers in csrc/, whose comments say what each function does.

cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void *PyUnicode_DATA(object text)
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    cnp.PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *data, Py_ssize_t size) except NULL
    int _PyBytes_Resize(cnp.PyObject **data, Py_ssize_t size) except -1
    int PyFloat_Pack2(double number, char *to, int little_endian) except -1
    int PY_LITTLE_ENDIAN

cdef extern from "numpy/arrayobject.h":
    enum:
        NPY_USERDEF
    object PyArray_NewFromDescr(
        type cls, cnp.dtype dtype, int ndim, cnp.npy_intp *dims, cnp.npy_intp *strides, void *data, int flags,
        object like)

cdef extern from "cpu.h" nogil:
    ctypedef struct vx_kernel:
        const char *name
        size_t (*decode)(uint8_t *, const uint8_t *, size_t) noexcept nogil
        void (*encode)(uint8_t *, const uint8_t *, size_t) noexcept nogil
        size_t (*plain)(const uint8_t *, size_t) noexcept nogil
    const vx_kernel *vx_active
    const vx_kernel *vx_kernels
    const size_t VX_KERNELS
    int vx_allowed(const vx_kernel *)
    int vx_choose(const char *)
    size_t VX_CHARS(size_t)

cdef extern from "npy.h" nogil:
    enum:
        VX_NPY_MAX_HEADER
        VX_NPY_PREFIX
    ctypedef struct vx_npy:
        uint32_t size, descr, descr_end
        uint8_t major, fortran, named
        int64_t itemsize, count, reach
        int ndim
        int64_t shape[32]
    size_t vx_npy_size(const uint8_t *, size_t, const char **, size_t *)
    int vx_npy_parse(const uint8_t *, size_t, vx_npy *, const char **, size_t *)
    int vx_times(int64_t *, int64_t)

cdef extern from "item.h" nogil:
    void vx_copy(uint8_t *, const uint8_t *, size_t)
    size_t vx_claimed(const uint8_t *, size_t)
    size_t vx_decode_after(const vx_kernel *, uint8_t *, const uint8_t *, size_t, size_t)
    size_t vx_decode_header(const vx_kernel *, uint8_t *, const uint8_t *, size_t, size_t)
    size_t vx_decode_rows(
        const vx_kernel *, uint8_t *, const uint8_t *, const size_t *, size_t, size_t, size_t, size_t, int)
    uint8_t *vx_encode_rows(
        const vx_kernel *, uint8_t *, const uint8_t *, size_t, size_t, const uint8_t *, size_t)
    enum:
        VX_TEXT
    int vx_is_sound(const uint8_t *, size_t, int)

cdef extern from "pages.h" nogil:
    void vx_huge_pages(void *, size_t)

cdef extern from "walk.h" nogil:
    enum:
        VX_DONE
        VX_SURPRISE
        VX_ASK
        VX_MAX_COLUMNS
    ctypedef struct vx_key:
        const uint8_t *text
        size_t size, chars
        uint8_t mask, bits
    ctypedef struct vx_walk:
        const uint8_t *begin
        const uint8_t *at
        const uint8_t *end
        const uint8_t *const *names
        const size_t *name_sizes
        vx_key keys[16]
        int columns, column, opened
        const uint8_t *text
        size_t *starts
        size_t room, count
        uint32_t numeric
    int vx_walk_on(vx_walk *)
    int vx_has_key(const vx_key *, const uint8_t *, size_t)
    const uint8_t *vx_open(const uint8_t *, const uint8_t *)
    const uint8_t *vx_take(const uint8_t *, const uint8_t *, char)
    const uint8_t *vx_space(const uint8_t *, const uint8_t *)
    int vx_closes(const uint8_t *, const uint8_t *)
    const uint8_t *vx_take_string(const vx_kernel *, const uint8_t **, const uint8_t *, size_t *, int *)

cdef extern from "numbers.h" nogil:
    enum:
        VX_BOOL
        VX_I8
        VX_U8
        VX_F16
        VX_F32
        VX_F64
    ctypedef struct vx_form:
        int kind, ndim
        const cnp.npy_intp *dims
        uint64_t most, odd
    size_t vx_take_rows(
        const vx_form *, const uint8_t *, const uint8_t **, const uint8_t *, uint8_t *, size_t, size_t, int)
    size_t vx_take_members(
        const vx_form *, const uint8_t *, const uint8_t *, const size_t *, size_t, uint8_t *, size_t, size_t)
    int vx_shape_of(const uint8_t *, const uint8_t *, const uint8_t *, int, cnp.npy_intp *)

cdef extern from "inputs.h" nogil:
    ctypedef struct vx_list:
        size_t start, end
    int vx_find_data(const uint8_t *, const uint8_t *, vx_list *, int)

cdef extern from "shortest.h" nogil:
    enum:
        VX_BF16
        VX_SLACK
    size_t vx_most_text(const vx_form *, size_t *)
    uint8_t *vx_put_forms(const vx_form *, uint8_t *, const uint8_t *, size_t)

cdef extern from "values.h" nogil:
    void vx_weigh(const uint8_t *, size_t, size_t *, int *)
    size_t vx_count_values(const char *, size_t, size_t)
    Py_ssize_t vx_big_int(const char *, size_t)

"""Compiles virtex/_codec, the counters, and the modules that a request passes through; pyproject.toml has the rest."""

import multiprocessing
import os
import shlex
import shutil
import sysconfig
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

compiler, *_ = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
if shutil.which(compiler) is None:  # told now: Cython takes half a minute before anything is compiled
    raise SystemExit(
        f"no C compiler: {compiler!r} is not found, and Virtex is compiled from its sources "
        "(Debian: apt install gcc python3-dev; without one install a wheel, which `make wheel` makes)"
    )

codec = Extension(
    "virtex._codec",
    ["virtex/_codec.pyx"],
    depends=["virtex/_codec.pxd", *glob("virtex/csrc/*.h")],
    include_dirs=["virtex/csrc", numpy.get_include()],
    define_macros=[
        ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
        ("NPY_TARGET_VERSION", "NPY_1_23_API_VERSION"),
    ],
    extra_compile_args=["-O3", "-g0"],
)

counters = Extension(
    "virtex.metrics._metrics",
    ["virtex/metrics/_metrics.pyx"],
    depends=["virtex/metrics/_metrics.pxd", "virtex/metrics/schema.py"],
    extra_compile_args=["-O2", "-g0"],
)

# A module with a .pxd beside it is compiled: the .pxd says what its classes are made of, so that C need not look it up.
# -Werror: a cpdef method of another module that is passed on as a callback would be called with the wrong arguments.
typed = [
    Extension(
        path.removesuffix(".pxd").replace("/", "."),
        [path.removesuffix("pxd") + "py"],
        extra_compile_args=["-O2", "-g0", "-Werror=incompatible-pointer-types"],
    )
    for path in sorted([*glob("virtex/[!_]*.pxd"), *glob("virtex/*/[!_]*.pxd")])
]

# Where a process is begun otherwise than by fork, it would run this file once more.
at_once = {"language_level": 3, "nthreads": (os.cpu_count() or 1) * (multiprocessing.get_start_method() == "fork")}

setup(
    ext_modules=[
        *cythonize([codec, counters], **at_once),
        # The annotations are mypy's: as C types they would refuse what Python takes, a bool for an int.
        *cythonize(typed, **at_once, compiler_directives={"annotation_typing": False, "nonecheck": True}),
    ],
    options={"build_ext": {"parallel": os.cpu_count()}},
)

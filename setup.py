"""Builds virtex/_codec; everything else about the package is in pyproject.toml."""

from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension(
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
        ],
        language_level=3,
    )
)

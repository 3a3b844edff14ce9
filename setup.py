"""The compiled kernels: optional, so that the package installs and runs (slower, in PyTorch) where there is no compiler."""

from glob import glob

from setuptools import Extension, setup

SOURCES = ["equivariant_transformer", "portable", "avx2", "avx512", "amx"]

setup(
    ext_modules=[
        Extension(
            "forcewell._kernels",
            sources=[f"src/forcewell/kernels/{name}.cpp" for name in SOURCES],
            depends=glob("src/forcewell/kernels/*.h"),
            extra_compile_args=["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math"],
            language="c++",
            optional=True,
        )
    ]
)

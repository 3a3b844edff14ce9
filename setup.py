"""The compiled kernels: optional, so that the package installs and runs (slower, in PyTorch) where there is no compiler."""

from setuptools import Extension, setup

HEADERS = ["dynamics", "layers", "linear", "machine", "matrix", "model", "numbers", "passes", "reverse", "samples", "tape", "tiles", "variant"]
SOURCES = ["equivariant_transformer", "portable", "avx2", "avx512", "amx"]

setup(
    ext_modules=[
        Extension(
            "forcewell._kernels",
            sources=[f"src/forcewell/kernels/{name}.cpp" for name in SOURCES],
            depends=[f"src/forcewell/kernels/{name}.h" for name in HEADERS],
            extra_compile_args=["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math"],
            language="c++",
            optional=True,
        )
    ]
)

"""The Triton kernels compile to machine code of GPUs that are not there."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROGRAM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from forcewell.nn import attention_kernels

constants = {"R": 16, "D": 16, "B": 16, "VECTORS": True, "PARAMETERS": True, "PRECISION": "tf32x3"}
types = {"K": "i32", "C": "i32", "cutoff": "fp32", "alpha": "fp32", "senders": "*i64", "degrees": "*i32"}
forward, reverse = attention_kernels._forward, attention_kernels._reverse
variants = [(forward, True, True), (forward, False, False), (reverse, False, True), (reverse, False, False), (reverse, True, True)]
for kernel, constants["DUAL"], constants["VECTORS"] in variants:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
    values = {(names.index(name),): value for name, value in constants.items() if name in names}
    made = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=values), target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__, len(made.asm["cubin"]), "bytes for sm_90")
"""


def test_kernels_compile_for_hopper() -> None:
    """With 16 channels per head: sums and the reverse pass, with their derivatives and without, in the first layer and in later ones."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bytes for sm_90") == 5

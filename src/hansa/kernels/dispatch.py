"""The one rule by which an operation chooses between plain torch and its Triton kernel.

CPU tensors take the torch path, which is itself fast; CUDA tensors take the Triton kernel. Triton is imported only then, so an
installation without it works on the CPU, and on a GPU with the torch paths.
"""

from functools import cache
from importlib.util import find_spec

from torch import Tensor


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def on_triton(*tensors: Tensor) -> bool:
    """Whether these operands go to a Triton kernel: all on a GPU, no float64, and Triton installed.

    float64 stays in torch: it is for checks, and the kernels accumulate in float32.
    """
    return all(x.is_cuda and x.dtype.itemsize <= 4 for x in tensors) and has_triton()

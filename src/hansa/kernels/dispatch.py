"""The one rule by which an operation chooses between plain torch and its Triton kernel.

CPU tensors take the torch path, which is itself fast; CUDA tensors take the Triton kernel. Triton is imported only then, so an
installation without it works on the CPU, and on a GPU with the torch paths.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def on_triton(*tensors: Tensor, any_type: bool = False) -> bool:
    """Whether these operands go to a Triton kernel.

    Args:
        tensors: The operands that say so.
        any_type: Whether the kernel takes float64 too; the others accumulate in float32, and float64 is for checks.

    Returns:
        True if all are on the current GPU, where Triton launches, of at most 32 bits unless `any_type`, and Triton is installed.
    """
    return (
        all(x.is_cuda and (any_type or x.dtype.itemsize <= 4) for x in tensors)
        and all(x.get_device() == torch.cuda.current_device() for x in tensors)
        and has_triton()
    )

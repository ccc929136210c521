# mypy: disable-error-code="import-untyped"
"""What all Triton launches ask: in which precision to multiply, and whether the interpreter needs help."""

from typing import Literal

import torch
import triton
from torch import Tensor


def dot_precision(x: Tensor) -> Literal["tf32x3", "tf32"]:
    """How float32 operands are multiplied: by three TF32 products each, unless torch was told that one will do.

    Three keep 21 of the 24 bits and run on the matrix units; "ieee" does not and is many times slower. Other types do not care.
    """
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 and x.dtype == torch.float32 else "tf32x3"


def upcast(x: Tensor) -> bool:
    """Whether a kernel must widen its operands after loading them.

    Triton's interpreter keeps bfloat16 as bit patterns: loads, stores and casts are right, arithmetic is not.
    """
    return bool(triton.knobs.runtime.interpret) and x.dtype == torch.bfloat16

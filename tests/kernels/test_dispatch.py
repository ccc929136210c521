"""The rule that sends an operation to its kernel, and an installation without Triton."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hansa.kernels import dispatch
from hansa.kernels.dispatch import on_triton

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from hansa.kernels.attention import window_attention
from hansa.kernels.compression import compress
from hansa.kernels.dispatch import has_triton
from hansa.kernels.grouped_lora import grouped_lora
from hansa.kernels.routing import route
from hansa.kernels.rows import gather_rows, spread_tokens
from hansa.kernels.segments import find_segments, sample_square_norms
from hansa.kernels.swiglu import swiglu

assert not has_triton()
x = torch.ones(6, 4)
routing = route(x, 2)
rows = spread_tokens(x, routing)
y, z = grouped_lora(rows, torch.ones(4, 4, 8), torch.ones(4, 4, 4), torch.ones(4, 4, 8), routing.ends_E, 1.0)
gather_rows(swiglu(y), routing)
sample_square_norms(z, y, find_segments(routing.expert_R, routing.token_R), 6, None)
window_attention(*[torch.ones(1, 1, 6, 4)] * 3, window=2, slopes_H=None, scale=1.0)
compress(x[0], torch.arange(4), torch.zeros(4).double(), bound=1.0, bits=8, radix=255, lanes=1, slots=4)
assert not [name for name in sys.modules if name.endswith("_triton")]
"""


def tensor(*, cuda: bool = True, dtype: torch.dtype = torch.float32, device: int = 0) -> Any:
    return SimpleNamespace(is_cuda=cuda, dtype=dtype, get_device=lambda: device)


@pytest.mark.parametrize(
    ("operands", "any_type", "expected"),
    [
        ([tensor(), tensor(dtype=torch.bfloat16)], False, True),
        ([tensor(), tensor(cuda=False)], False, False),
        ([tensor(dtype=torch.float64)], False, False),
        ([tensor(dtype=torch.float64)], True, True),
        ([tensor(device=1)], False, False),
    ],
)
def test_kernels_serve_operands_on_the_current_gpu(
    operands: list[Any], any_type: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert on_triton(*operands, any_type=any_type) is expected
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert not on_triton(*operands, any_type=any_type)


def test_an_installation_without_triton_works_on_the_cpu() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr

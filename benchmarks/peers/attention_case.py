"""One attention layer: ours in blocks, and the whole matrix with a dense mask."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 64
WINDOW = 512


def operands(tokens: int, heads: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values that want gradients, the gradient at the output, ALiBi slopes."""
    draws = torch.Generator().manual_seed(20261122)
    q, k, v, g = (torch.randn(1, heads, tokens, WIDTH, generator=draws) for _ in range(4))
    return [x.requires_grad_() for x in (q, k, v)], g, 2.0 ** -torch.arange(1, heads + 1)


def prepare_ours(tokens: int, heads: int, window: int | None) -> Callable[[], None]:
    """Forward and backward in blocks."""
    from hansa.kernels.attention import window_attention

    leaves, g, slopes_H = operands(tokens, heads)

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        y = window_attention(*leaves, window=window, slopes_H=slopes_H, scale=WIDTH**-0.5)
        y.backward(g)  # type: ignore[no-untyped-call]

    return call


def prepare_dense(tokens: int, heads: int, window: int | None) -> Callable[[], None]:
    """Forward and backward of torch's scaled_dot_product_attention with window and ALiBi as a dense mask."""
    leaves, g, slopes_H = operands(tokens, heads)
    place = torch.arange(tokens)
    distance = place.unsqueeze(1) - place
    hidden = (distance < 0) | (distance >= (window or tokens))
    mask = (-slopes_H.view(-1, 1, 1) * distance).masked_fill(hidden, -torch.inf).unsqueeze(0)

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        F.scaled_dot_product_attention(*leaves, attn_mask=mask, scale=WIDTH**-0.5).backward(g)  # type: ignore[no-untyped-call]

    return call


def peak_gib(tokens: int, heads: int, window: int | None) -> float:
    """Largest resident memory of a process that does one forward and backward pass and nothing else, in GiB."""
    context = multiprocessing.get_context("spawn")
    answers: Queue[float] = context.Queue()
    child = context.Process(target=_peak_of_this_process, args=(tokens, heads, window, answers))
    child.start()
    answer = answers.get()
    child.join()
    return answer


def _peak_of_this_process(tokens: int, heads: int, window: int | None, answers: "Queue[float]") -> None:
    torch.set_num_threads(1)
    prepare_ours(tokens, heads, window)()
    # Not `ru_maxrss`, which a new process takes over from the one that started it.
    status = Path("/proc/self/status").read_text().split("VmHWM:", 1)[1]
    answers.put(int(status.split()[0]) / 2**20)

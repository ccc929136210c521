# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
"""Choice of experts and a stable counting sort of the rows in two launches: without atomics, without waiting for the GPU.

    choose:  K rounds of a maximum over keys (score, -position), so there are no ties; then the rank of each slot among its block's
             slots of the same expert (a running count down the block), and the block's count of each expert
    place:   position = base[block, expert] + rank, where base is a running sum over (experts, blocks)

Deterministic, and equal to `hansa.kernels.routing.choose` and `sort_rows` bit by bit.
Bytes: 4·T·E + 36·R; for 32,768 tokens, 128 experts and top-4 22 MB, 7 µs on an H100: the launches weigh more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hansa.kernels.routing import Groups

_TILE = 2048  # entries of a block of scores; more of them spill
_PLACE = 512


@triton.jit
def _sort_key(x, position):
    """An int64 that sorts like x, the lower position first among equal ones; NaN has a place too."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return (ordered << 32) | (0x7FFFFFFF - position).to(tl.int64)


@triton.jit
def choose_kernel(
    select_ptr,
    expert_ptr,
    rank_ptr,
    count_ptr,
    tokens,
    EXPERTS: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Choose for BLOCK_T tokens; experts lie in BLOCK_G · BLOCK_P columns, each group padded to a power of two."""
    LOWEST: tl.constexpr = -0x8000000000000000
    SIZE: tl.constexpr = EXPERTS // GROUPS
    block = tl.program_id(0)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, BLOCK_G * BLOCK_P)
    group, place = column // BLOCK_P, column % BLOCK_P
    expert = group * SIZE + place
    exists = (place < SIZE) & (group < GROUPS)
    inside = t < tokens
    at = t.to(tl.int64)[:, None] * EXPERTS + expert[None, :]
    x = tl.load(select_ptr + at, mask=inside[:, None] & exists[None, :], other=float("-inf"))
    if GROUPS > 1:
        x3 = tl.reshape(x, (BLOCK_T, BLOCK_G, BLOCK_P))
        key3 = tl.reshape(_sort_key(x, column[None, :]), (BLOCK_T, BLOCK_G, BLOCK_P))
        sums = tl.max(x3, axis=2)
        if GROUP_BEST == 2:
            first = tl.max(key3, axis=2)
            sums += tl.max(tl.where(key3 == first[:, :, None], float("-inf"), x3), axis=2)
        g = tl.arange(0, BLOCK_G)
        group_key = tl.where((g < GROUPS)[None, :], _sort_key(sums, g[None, :]), LOWEST)
        closed = tl.full((BLOCK_T, BLOCK_G), 1, tl.int32)
        for _ in range(TOP_GROUPS):
            taken = group_key == tl.max(group_key, axis=1)[:, None]
            closed = tl.where(taken, 0, closed)
            group_key = tl.where(taken, LOWEST, group_key)
        x3 = tl.where(closed[:, :, None] == 1, float("-inf"), x3)
        x = tl.reshape(x3, (BLOCK_T, BLOCK_G * BLOCK_P))
    key = tl.where(exists[None, :], _sort_key(x, column[None, :]), LOWEST)
    round_of = tl.full((BLOCK_T, BLOCK_G * BLOCK_P), -1, tl.int32)
    slot = t.to(tl.int64) * K
    for k in range(K):
        taken = key == tl.max(key, axis=1)[:, None]
        round_of = tl.where(taken, k, round_of)
        key = tl.where(taken, LOWEST, key)
        tl.store(expert_ptr + slot + k, tl.sum(tl.where(taken, expert[None, :], 0), axis=1), mask=inside)
    picked = ((round_of >= 0) & inside[:, None]).to(tl.int32)
    before = tl.cumsum(picked, axis=0) - picked
    for k in range(K):
        tl.store(rank_ptr + slot + k, tl.sum(tl.where(round_of == k, before, 0), axis=1), mask=inside)
    tl.store(count_ptr + block * EXPERTS + expert, tl.sum(picked, axis=0), mask=exists)


@triton.jit
def place_kernel(
    expert_ptr,
    rank_ptr,
    base_ptr,
    token_ptr,
    inverse_ptr,
    sorted_ptr,
    rows,
    EXPERTS: tl.constexpr,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put every slot at its place."""
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < rows
    token = slot // K
    expert = tl.load(expert_ptr + slot, mask=inside, other=0)
    base = tl.load(base_ptr + (token // BLOCK_T).to(tl.int64) * EXPERTS + expert, mask=inside, other=0)
    position = base + tl.load(rank_ptr + slot, mask=inside, other=0)
    tl.store(inverse_ptr + slot, position.to(tl.int64), mask=inside)
    tl.store(token_ptr + position, token.to(tl.int64), mask=inside)
    tl.store(sorted_ptr + position, expert.to(tl.int64), mask=inside)


def choose_and_sort(
    select_TE: Tensor, top_k: int, limit: Groups
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return `expert_TK`, `token_R`, `inverse_R`, `expert_R` and `ends_E` of a routing."""
    tokens, experts = select_TE.shape
    block_groups = triton.next_power_of_2(limit.count)
    block_places = triton.next_power_of_2(experts // limit.count)
    block_tokens = max(1, min(16, _TILE // (block_groups * block_places)))
    blocks, rows = triton.cdiv(tokens, block_tokens), tokens * top_k
    empty = select_TE.new_empty
    expert_TK = empty((tokens, top_k), dtype=torch.int64)
    rank_TK = empty((tokens, top_k), dtype=torch.int32)
    count_NE = empty((blocks, experts), dtype=torch.int32)
    choose_kernel[(blocks,)](
        select_TE.contiguous(),
        expert_TK,
        rank_TK,
        count_NE,
        tokens,
        EXPERTS=experts,
        K=top_k,
        GROUPS=limit.count,
        TOP_GROUPS=limit.top,
        GROUP_BEST=limit.best,
        BLOCK_T=block_tokens,
        BLOCK_G=block_groups,
        BLOCK_P=block_places,
    )
    # Expert-major running sum: one scan gives the base of every (block, expert) and the ends.
    sums_EN = torch.cumsum(count_NE.t().flatten(), dim=0, dtype=torch.int32).view(experts, blocks)
    base_NE = (sums_EN.t() - count_NE).contiguous()
    token_R, inverse_R, expert_R = (empty(rows, dtype=torch.int64) for _ in range(3))
    place_kernel[(triton.cdiv(rows, _PLACE),)](
        expert_TK,
        rank_TK,
        base_NE,
        token_R,
        inverse_R,
        expert_R,
        rows,
        EXPERTS=experts,
        K=top_k,
        BLOCK_T=block_tokens,
        BLOCK=_PLACE,
    )
    return expert_TK, token_R, inverse_R, expert_R, sums_EN[:, -1].contiguous()

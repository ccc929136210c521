"""The expert layer and its attention on a CPU, beside dense products of the same FLOPs and other ways to do the same.

    python benchmarks/moe.py [--quick] [--json FILE]

Processor seconds of one thread. All systems of a row run in turn, several rounds; a number is the median over the rounds of the
ratio to the floor of the same round, so that a busy machine slows both sides.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it out

import torch
from peers import attention_case, hansa_moe, moe_case, transformers_moe
from peers.moe_case import KINDS, Call, MoeCase

from hansa.kernels.grouped import grouped_outer_sum
from hansa.kernels.segments import clipped_weight_gradient, find_segments, sample_square_norms

Row = dict[str, object]
# Name of a peer -> function of the case and the kind; None where it cannot do that kind.
PEERS: dict[str, Callable[[MoeCase, str], Call | None]] = {
    "loop over experts": moe_case.prepare_loop,
    "transformers eager": transformers_moe.prepare_eager,
    "transformers grouped": transformers_moe.prepare_grouped,
    "PEFT": transformers_moe.prepare_peft,
}
GOALS = {"forward": 1.45, "input gradient": 1.45, "lora": 1.40}
METRICS = {
    "forward": "expert layer, forward",
    "input gradient": "expert layer, forward and input gradient",
    "lora": "expert layer with LoRA r = 16, forward and backward",
}


def seconds_of(call: Call) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def ratios(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call over those of "floor", round by round; a first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        seconds = {name: seconds_of(call) for name, call in calls.items()}
        for name in calls if turn else ():
            found[name].append(seconds[name] / seconds["floor"])
    return found


def row(metric: str, unit: str, values: list[float], conditions: str, **others: object) -> Row:
    """One row in the form of README.md."""
    return {
        "metric": metric,
        "unit": unit,
        "better": "lower",
        "hansa": statistics.median(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "peers": {},
        "floor": None,
        "goal": None,
        "conditions": conditions,
    } | others


def rows_of_experts(rounds: int) -> list[Row]:
    """The expert layer at the sizes of the goals."""
    case, table = make_case(), []
    sizes = "T=2048, d=512, E=128, ff=256, top-4, fp32; floor: its products as dense ones"
    for kind in KINDS:
        calls = {"floor": moe_case.prepare_floor(case, kind), "hansa": hansa_moe.prepare_ours(case, kind)}
        calls |= {name: call for name, make in PEERS.items() if (call := make(case, kind)) is not None}
        if kind == "lora":
            calls["frozen"] = moe_case.prepare_base(case)
        found = ratios(calls, rounds)
        others = {name: statistics.median(found[name]) for name in PEERS if name in found}
        table.append(
            row(METRICS[kind], "ratio", found["hansa"], sizes, peers=others, floor=1.0, goal=GOALS[kind])
        )
        if kind == "lora":
            alone = [ours / frozen for ours, frozen in zip(found["hansa"], found["frozen"], strict=True)]
            under = f"{sizes}, without those of the adapters"
            table.append(
                row(f"{METRICS[kind]}, over the frozen products alone", "ratio", alone, under, floor=1.0)
            )
    return table


def make_case() -> MoeCase:
    """The sizes of the goals."""
    return moe_case.make_case(tokens=2048, dim=512, experts=128, ff=256, top_k=4, rank=16)


def rows_of_clipping(rounds: int) -> list[Row]:
    """Per-sample norms and the clipped sum of one factor, over its plain weight gradient."""
    table, draws = [], torch.Generator().manual_seed(20261122)
    rows, experts, rank, width = 8192, 128, 16, 512
    z_Rr, g_RN = (torch.randn(rows, size, generator=draws) for size in (rank, width))
    for samples in (4, 16):
        expert_R = torch.arange(rows) * experts // rows
        sample_R = torch.arange(rows) % (rows // experts) * samples // (rows // experts)
        segments = find_segments(expert_R, sample_R)
        ends_E = torch.arange(1, experts + 1, dtype=torch.int32) * (rows // experts)

        def clipped(segments=segments, sample_R=sample_R, ends_E=ends_E, samples=samples) -> None:  # type: ignore[no-untyped-def]
            norms_B = sample_square_norms(z_Rr, g_RN, segments, samples, None).sqrt()
            weights_B = (1.0 / norms_B.clamp(min=1.0)).to(torch.float32)
            clipped_weight_gradient(z_Rr, g_RN, weights_B[sample_R], ends_E)

        calls: dict[str, Call] = {
            "floor": lambda ends_E=ends_E: grouped_outer_sum(z_Rr, g_RN, ends_E),  # type: ignore[misc]
            "hansa": clipped,
        }
        each = rows // experts // samples
        sizes = f"8,192 rows, 128 experts, 16 x 512, {each} rows a segment, fp32; floor: the plain weight gradient"
        found = ratios(calls, 3 * rounds)["hansa"]
        table.append(
            row(f"per-sample clipping of one factor, {each} rows a segment", "ratio", found, sizes, floor=1.0)
        )
    return table


def rows_of_attention(rounds: int) -> list[Row]:
    """Speed against a dense mask, and growth with the length."""
    heads, window = 8, attention_case.WINDOW
    sizes = f"{heads} heads of 64, window {window}, ALiBi, fp32, forward and backward"
    calls = {
        "floor": attention_case.prepare_ours(4096, heads, window),
        "dense": attention_case.prepare_dense(4096, heads, window),
    }
    speed = ratios(calls, max(2, rounds // 2))["dense"]
    calls = {
        "floor": attention_case.prepare_ours(2048, heads, window),
        "long": attention_case.prepare_ours(8192, heads, window),
    }
    growth = [found / 4 for found in ratios(calls, max(2, rounds // 2))["long"]]
    return [
        row("attention, speed over a dense mask", "x", speed, f"N=4096, {sizes}", better="higher", goal=5.0),
        row("attention, time per token at 8,192 over 2,048", "ratio", growth, sizes, floor=1.0),
    ]


def rows_of_memory() -> list[Row]:
    """Memory at 32,768 tokens: measured once, each in a process of its own."""
    table = []
    for name, window in (("attention in a window", attention_case.WINDOW), ("attention to every key", None)):
        peak = attention_case.peak_gib(32_768, 8, window)
        sizes = f"8 heads of 64, window {window}, ALiBi, fp32, forward and backward, one run"
        table.append(row(f"{name}, memory at 32,768 tokens", "GiB", [peak], sizes, goal=8.0))
    return table


def machine() -> str:
    """What a time depends on."""
    with open("/proc/cpuinfo") as info:
        found = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    processor = found[0] if found else platform.machine()
    load = round(os.getloadavg()[0], 1)
    return (
        f"{processor}, one thread, load {load}, torch {torch.__version__}, "
        f"transformers {version('transformers')}, peft {version('peft')}, python {platform.python_version()}"
    )


def show(table: list[Row]) -> None:
    """Print the table."""
    names = list(dict.fromkeys(name for found in table for name in dict(found["peers"])))  # type: ignore[call-overload]

    def text(value: object) -> str:
        return "-" if value is None else f"{value:.3g}"

    heads = "".join(f"{name[:20]:>22}" for name in names)
    print(f"{'':78} {'UNIT':6} {'HANSA':>7} {'+-':>6} {'FLOOR':>6} {'GOAL':>6}       {heads}")
    for found in table:
        ours, goal = float(found["hansa"]), found["goal"]  # type: ignore[arg-type]
        met = goal is None or (ours >= goal if found["better"] == "higher" else ours <= goal)  # type: ignore[operator]
        verdict = "" if goal is None else "met" if met else "MISSED"
        others = "".join(f"{text(dict(found['peers']).get(name)):>22}" for name in names)  # type: ignore[call-overload]
        print(
            f"{found['metric']!s:78} {found['unit']!s:6} {text(ours):>7} {text(found['deviation']):>6} "
            f"{text(found['floor']):>6} {text(goal):>6} {verdict:6}{others}"
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, no memory at 32,768 tokens: under 50 s"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 5 if options.quick else 15
    table = rows_of_experts(rounds) + rows_of_clipping(rounds)
    table += rows_of_attention(rounds)
    if not options.quick:
        table += rows_of_memory()
    show(table)
    here = machine()
    print(f"\n{here}")
    if options.json:
        for found in table:
            found["conditions"] = f"{found['conditions']}; {rounds} rounds; {here}"
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()

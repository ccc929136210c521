"""One training step with exact per-sample clipping, beside the same step without privacy, Opacus and torch.func.

    python benchmarks/dp_step.py [--quick] [--json FILE]

Processor seconds of one thread. All systems of a row run in turn, several rounds; a number is the median over the rounds of the
ratio to the plain step of the same round. Memory is what a step adds to a fresh process, over what the plain step adds.
Every system's clipped sum is held against ours before it is timed.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it out

import torch
from peers import dp_case
from peers.dp_case import DpCase, Step
from peers.ratios import Call, Row, machine, ratios, row, seconds_of, show, write

OPACUS: dict[str, Callable[[DpCase], Step]] = {
    "Opacus hooks": dp_case.prepare_hooks,
    "Opacus ghost": dp_case.prepare_ghost,
}
GOALS = {False: 1.06, True: 1.22}
NAMES = {False: "B only", True: "A and B"}


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """A peer that computes something else is no peer."""
    gap = float((found.double() - expected).norm() / expected.norm())
    if not gap < tolerance:
        raise SystemExit(f"a clipped sum is off by {gap:.1e}")


def row_of_time(*, both: bool, experts: int, rounds: int, func: bool) -> Row:
    """A step's time over the plain step's."""
    case = dp_case.make_case(both=both, experts=experts)
    samples, tokens = case.tokens_BT.shape
    ours = dp_case.prepare_ours(case)
    plain: Call = dp_case.prepare_plain(case)
    expected = ours()
    alone = ratios({"floor": plain, "hansa": ours}, 3 * rounds)["hansa"]
    steps = {name: make(case) for name, make in OPACUS.items()}
    for step in steps.values():
        same(step(), expected, 1e-4)
    found = ratios({"floor": plain, **steps}, rounds)
    peers = {name: statistics.median(found[name]) for name in steps}
    if func:
        peers["torch.func"] = seconds_of_func(case) * samples / seconds_of(plain)
    sizes = f"B={samples}, T={tokens}, d=256, 4 blocks, E={experts}, ff=256, top-4, LoRA r=8 on attention, router and experts"
    note = f"{sizes}, fp32; floor: the same step without privacy; torch.func: one sample, times {samples}, one run"
    metric = f"clipped step, {NAMES[both]}, {experts} experts, time"
    goal = GOALS[both] if experts == 128 else None
    return row(metric, "ratio", alone, note, peers=peers, floor=1.0, goal=goal)


def seconds_of_func(case: DpCase) -> float:
    """torch.func's step of one sample: its time is linear in them, and its every expert serves every token."""
    one = DpCase(model=case.model, layout=case.layout, tokens_BT=case.tokens_BT[:1])
    step, found = dp_case.prepare_func(one), []
    seconds = seconds_of(lambda: found.append(step()))
    # Where two experts are all but equal, rounding decides, and this model rounds in another order.
    same(found[0], dp_case.prepare_ours(one)(), 1e-2)
    return seconds


def row_of_memory(*, both: bool, runs: int) -> Row:
    """A step's extra memory over the plain step's, each in fresh processes."""
    names = ("plain", "hansa", *OPACUS)
    peaks = {name: [peak_mib(name, both) for _ in range(runs)] for name in names}
    plain = statistics.median(peaks["plain"])
    found = [peak / plain for peak in peaks["hansa"]]
    others = {name: statistics.median(peaks[name]) / plain for name in OPACUS}
    sizes = f"as above, E=128; over {plain:.0f} MiB; {runs} runs; second step of a fresh process"
    metric = f"clipped step, {NAMES[both]}, 128 experts, peak memory"
    return row(metric, "ratio", found, sizes, peers=others, floor=1.0, goal=1.25)


def peak_mib(name: str, both: bool) -> float:
    """Largest resident memory in two steps of a fresh process, less what model and batch take."""
    context = multiprocessing.get_context("spawn")
    answers: Queue[float] = context.Queue()
    child = context.Process(target=_peak_of_this_process, args=(name, both, answers))
    child.start()
    answer = answers.get()
    child.join()
    return answer


def _peak_of_this_process(name: str, both: bool, answers: "Queue[float]") -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = dp_case.make_case(both=both)
    makers = {"plain": dp_case.prepare_plain, "hansa": dp_case.prepare_ours, **OPACUS}
    step: Call = makers[name](case)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    step()
    step()
    answers.put((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="128 experts, one round, no torch.func, no memory: under 50 s"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Opacus hooks inputs that need no gradient, of which torch warns
    full = not options.quick
    rounds = 4 if full else 1
    table = [
        row_of_time(both=both, experts=experts, rounds=rounds, func=full and both and experts == 128)
        for experts in ((128, 16) if full else (128,))
        for both in (False, True)
    ]
    if full:  # one process each is too few to say anything: the allocator moves it by a tenth
        table += [row_of_memory(both=both, runs=3) for both in (False, True)]
    show(table)
    write(table, f"{rounds} rounds; {machine('opacus')}", options.json)


if __name__ == "__main__":
    main()

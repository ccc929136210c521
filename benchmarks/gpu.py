"""Every Triton kernel on the card of this machine: equal to its reference, and how fast beside torch and the card's bounds.

    python benchmarks/gpu.py [--check-only] [--json FILE]

Exit status: 0 all checks passed, 1 one failed, 69 no GPU or no Triton here.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it out

import torch

from hansa.kernels.dispatch import has_triton

UNAVAILABLE = 69
# Dense bfloat16 operations a second and bytes a second, from the data sheets.
CARDS = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.0e12),
    "L40S": (362e12, 0.864e12),
}
Row = dict[str, object]


def check(device: torch.device) -> int:
    """Compare every kernel with its reference; print one line each and return how many failed."""
    from peers.gpu_checks import CHECKS

    failed = 0
    for make in CHECKS.values():
        for found in make(device):
            failed += not found.passed
            verdict = "ok" if found.passed else "FAILED"
            print(f"{verdict:7} {found.error:9.2e} <= {found.tolerance:7.0e}  {found.name}")
    return failed


def milliseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Median of the runs and half of the distance between the 20 % and the 80 % quantiles."""
    from triton.testing import do_bench

    middle, low, high = do_bench(call, quantiles=[0.5, 0.2, 0.8])
    return middle, (high - low) / 2


def time_all(device: torch.device, card: str) -> list[Row]:
    """Time every kernel and what it competes with."""
    from peers.gpu_timings import timings

    peaks = next((peaks for name, peaks in CARDS.items() if name in card), None)
    table: list[Row] = []
    for name, ours, others, flops, moved in timings(device):
        middle, spread = milliseconds(ours)
        bound = None if peaks is None else 1e3 * max(flops / peaks[0], moved / peaks[1])
        table.append(
            {
                "metric": name,
                "unit": "ms",
                "better": "lower",
                "hansa": middle,
                "deviation": spread,
                "peers": {other: milliseconds(call)[0] for other, call in others.items()},
                "floor": bound,
                "goal": None,
                "conditions": "bfloat16; floor: the larger of operations and bytes over the data sheet's rates",
            }
        )
    return table


def show(table: list[Row]) -> None:
    """Print the table."""
    print(f"\n{'':50} {'HANSA ms':>9} {'+-':>7} {'BOUND':>7} {'OF IT':>6}  PEERS")
    for row in table:
        floor, ours = row["floor"], float(row["hansa"])  # type: ignore[arg-type]
        share = "-" if floor is None else f"{100 * floor / ours:.0f} %"  # type: ignore[operator]
        bound = "-" if floor is None else f"{floor:.3f}"
        peers = ", ".join(f"{name} {value:.3f}" for name, value in dict(row["peers"]).items())  # type: ignore[call-overload]
        print(f"{row['metric']!s:50} {ours:9.3f} {row['deviation']:7.3f} {bound:>7} {share:>6}  {peers}")


def main() -> None:
    """Check and time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check-only", action="store_true", help="compare with the references, time nothing")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not has_triton():
        missing = "no CUDA GPU that torch can use" if has_triton() else "no Triton"
        print(f"gpu.py: {missing} on this machine: nothing was checked, nothing was timed", file=sys.stderr)
        sys.exit(UNAVAILABLE)
    device = torch.device("cuda", torch.cuda.current_device())
    card = torch.cuda.get_device_name(device)
    import triton

    here = f"{card}, torch {torch.__version__}, triton {triton.__version__}"
    print(here)
    failed = check(device)
    print(f"{failed} checks failed" if failed else "all checks passed")
    if not options.check_only:
        table = time_all(device, card)
        show(table)
        if options.json:
            for row in table:
                row["conditions"] = f"{row['conditions']}; {here}"
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"rows": table, "failed": failed}, indent=2) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

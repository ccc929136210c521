"""No protection: everybody sends 32-bit floats and gets their sum back."""

import numpy as np

from peers.measured import LEVELS, Measured, Stopwatch, floats_of, levels_of

NAME = "plain fp32"


def run_plain_fp32(participants: int, entries: int, dropouts: int, sample: int = 4) -> Measured:
    """Add up some participants' vectors; what one costs does not depend on how many there are."""
    watch, measured = Stopwatch(), range(min(sample, participants - dropouts))
    total, expected = np.zeros(entries, dtype=np.float32), np.zeros(entries, dtype=np.int64)
    for member in measured:
        vector = floats_of(member, entries)
        with watch(f"{member}", "send"):
            sent = vector.tobytes()
        with watch("coordinator", "add"):
            total += np.frombuffer(sent, dtype=np.float32)
        expected += levels_of(member, entries)
    down = total.tobytes()
    for member in measured:
        with watch(f"{member}", "receive"):
            received = np.frombuffer(down, dtype=np.float32).copy()
    return Measured(
        participant_seconds=[watch.of(f"{member}") for member in measured],
        coordinator_seconds=watch.of("coordinator") / len(measured),
        up_bytes=len(sent),
        down_bytes=len(down),
        largest_error=float(np.abs(received.astype(np.float64) * LEVELS - expected).max()),
    )

"""CKKS as NVIDIA FLARE uses it: TenSEAL, degree 8192, primes [60, 40, 40], scale 2^40, one symmetric key.

FLARE itself is not run: its serialisation adds a context of 663 kB to every tensor. There are no masks, so whoever
holds the key (every participant) can read every single upload that it gets hold of.
"""

import numpy as np
import tenseal

from peers.measured import LEVELS, Measured, Stopwatch, floats_of, levels_of, quiet_stdout

NAME = f"CKKS, TenSEAL {tenseal.__version__}"
TENSOR_ENTRIES = 1_000_000  # FLARE sends a vector for each tensor; this also bounds the memory


def run_tenseal_ckks(participants: int, entries: int, dropouts: int, sample: int = 2) -> Measured:
    """Add up some participants' vectors; what one costs does not depend on how many there are."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=8192,
        coeff_mod_bit_sizes=[60, 40, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = 2**40
    blind = tenseal.context_from(context.serialize(save_secret_key=False))
    with quiet_stdout():
        return _run(context, blind, entries, participants - dropouts, sample)


def _run(
    context: tenseal.Context, blind: tenseal.Context, entries: int, survivors: int, sample: int
) -> Measured:
    watch, measured = Stopwatch(), range(min(sample, survivors))
    up_bytes = down_bytes = 0
    largest_error = 0.0
    for start in range(0, entries, TENSOR_ENTRIES):
        part = slice(start, start + TENSOR_ENTRIES)
        total, expected = None, np.zeros(min(TENSOR_ENTRIES, entries - start), dtype=np.int64)
        for member in measured:
            vector = floats_of(member, entries)[part]
            with watch(f"{member}", "encrypt"):
                sent = tenseal.ckks_vector(context, vector.tolist()).serialize()
            with watch("coordinator", "add"):
                loaded = tenseal.ckks_vector_from(blind, sent)
                total = loaded if total is None else total.add_(loaded)
            expected += levels_of(member, entries)[part]
        up_bytes += len(sent)
        with watch("coordinator once", "mean"):
            down = total.mul_(1 / len(measured)).serialize()  # FLARE's server weights, which drops one prime
        down_bytes += len(down)
        for member in measured:
            with watch(f"{member}", "decrypt"):
                received = np.array(tenseal.ckks_vector_from(context, down).decrypt())
        error = float(np.abs(received * len(measured) * LEVELS - expected).max())
        largest_error = max(largest_error, error)
    return Measured(
        participant_seconds=[watch.of(f"{member}") for member in measured],
        coordinator_seconds=watch.of("coordinator") / len(measured)
        + watch.of("coordinator once") / survivors,
        up_bytes=up_bytes,
        down_bytes=down_bytes,
        largest_error=largest_error,
    )

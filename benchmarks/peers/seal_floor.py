"""What Microsoft SEAL itself takes, and nothing else: the floor of a participant and of the coordinator."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tenseal import sealapi

from hansa.secure_agg.parameters import COEFFICIENT_MODULUS_BITS, PLAIN_MODULUS, SLOTS, layout_for
from peers.measured import Stopwatch

_REPEATS = 3


class Floor(NamedTuple):
    """Processor seconds for one update: encode, encrypt, decrypt, decode; and to load it from a file and add it."""

    participant: float
    coordinator: float


def floor_seconds(participants: int, entries: int) -> Floor:
    """The best of three, without any conversion of ours."""
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(SLOTS)
    parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(SLOTS, list(COEFFICIENT_MODULUS_BITS)))
    parameters.set_plain_modulus(PLAIN_MODULUS)
    context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
    encoder, evaluator = sealapi.BatchEncoder(context), sealapi.Evaluator(context)
    secret = sealapi.KeyGenerator(context).secret_key()
    encryptor, decryptor = sealapi.Encryptor(context, secret), sealapi.Decryptor(context, secret)
    slots = np.random.default_rng(1).integers(0, PLAIN_MODULUS, SLOTS, dtype=np.uint64).tolist()
    count = min(64, layout_for(participants).ciphertexts_for(entries))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        upload = str(Path(folder) / "seeded")
        for _ in range(_REPEATS):
            watch, total = Stopwatch(), sealapi.Ciphertext(context)
            for index in range(count):
                plain, opened, ciphertext = (
                    sealapi.Plaintext(),
                    sealapi.Plaintext(),
                    sealapi.Ciphertext(context),
                )
                with watch("participant", "up"):
                    encoder.encode(slots, plain)
                    seeded = encryptor.encrypt_symmetric(plain)
                encryptor.encrypt_symmetric(plain, total if index == 0 else ciphertext)
                seeded.save(upload)
                with watch("coordinator", "load, add"):
                    ciphertext.load(context, upload)
                    evaluator.add_inplace(total, ciphertext)
                with watch("participant", "down"):
                    decryptor.decrypt(total, opened)
                    encoder.decode_uint64(opened)
            found.append((watch.of("participant"), watch.of("coordinator")))
    scale = layout_for(participants).ciphertexts_for(entries) / count
    return Floor(*(min(seconds) * scale for seconds in zip(*found, strict=True)))

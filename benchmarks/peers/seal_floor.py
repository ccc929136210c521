"""What Microsoft SEAL itself takes for one participant: encode, encrypt, decrypt, decode, and nothing else."""

import numpy as np
from tenseal import sealapi

from hansa.secure_agg.parameters import COEFFICIENT_MODULUS_BITS, PLAIN_MODULUS, SLOTS, layout_for
from peers.measured import Stopwatch

_REPEATS = 3


def floor_seconds(participants: int, entries: int) -> float:
    """Processor seconds for an update of this many entries; the best of three, without any conversion of ours."""
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(SLOTS)
    parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(SLOTS, list(COEFFICIENT_MODULUS_BITS)))
    parameters.set_plain_modulus(PLAIN_MODULUS)
    context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
    encoder = sealapi.BatchEncoder(context)
    secret = sealapi.KeyGenerator(context).secret_key()
    encryptor, decryptor = sealapi.Encryptor(context, secret), sealapi.Decryptor(context, secret)
    slots = np.random.default_rng(1).integers(0, PLAIN_MODULUS, SLOTS, dtype=np.uint64).tolist()
    count = min(64, layout_for(participants).ciphertexts_for(entries))
    best = float("inf")
    for _ in range(_REPEATS):
        watch = Stopwatch()
        for _ in range(count):
            plain, opened, ciphertext = sealapi.Plaintext(), sealapi.Plaintext(), sealapi.Ciphertext(context)
            with watch("seal", "up"):
                encoder.encode(slots, plain)
                encryptor.encrypt_symmetric(plain)
            encryptor.encrypt_symmetric(plain, ciphertext)
            with watch("seal", "down"):
                decryptor.decrypt(ciphertext, opened)
                encoder.decode_uint64(opened)
        best = min(best, watch.of("seal"))
    return best * layout_for(participants).ciphertexts_for(entries) / count

"""A round opened by other code: written from docs/protocol.md, without a function or constant of hansa.

Plain integers, hashlib, hmac and the primitives of `cryptography`. Decryption is handed in: what BFV is, its own tests say.
"""

import hashlib
import hmac

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

T = 281474976694273
P = 2**255 - 19
NEW = {"cohort", "roster", "transcript", "manifest", "he-key-id"}


def label(name):
    return f"hansa/v{2 if name in NEW else 1}/secure-agg/{name}".encode()


def n8(value):
    return value.to_bytes(8, "big")


def frame(*parts):
    return b"".join(n8(len(part)) + part for part in parts)


def H(name, *parts):
    return hashlib.sha256(frame(label(name), *parts)).digest()


def kdf(secret, salt, info):
    """RFC 5869, one block."""
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def aes_ctr(key, length, upper=0):
    cipher = Cipher(algorithms.AES(key), modes.CTR(n8(upper) + bytes(8)))
    return cipher.encryptor().update(bytes(length))


def prg(seed, count):
    stream = aes_ctr(seed, 8 * count)
    words = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") >> 16 for i in range(count)]
    assert max(words) < T, "one word in 10^14: another run has other words"
    return words


def body_of(signed):
    return cbor2.loads(cbor2.loads(signed)["body"])


def combine(shares):
    """Lagrange interpolation at zero over x -> share."""
    total = 0
    for x, share in shares.items():
        factor = int.from_bytes(share, "little")
        for other in shares:
            if other != x:
                factor = factor * other * pow(other - x, -1, P) % P
        total += factor
    return (total % P).to_bytes(32, "little")


def agreement(private, public):
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


class SecondOpinion:
    """What a member computes from a round's messages, its group key and the manifest."""

    def __init__(self, *, manifest, group_key, members, round_index, attempt, transcript, packages, headers):
        self.g, self.members, self.at = group_key, sorted(members), (n8(round_index), n8(attempt))
        self.packages = {body_of(signed)["sender"]: signed for signed in packages}
        self.headers = {body_of(signed)["sender"]: signed for signed in headers}
        self.cohort, self.roster = sorted(self.packages), sorted(self.headers)
        self.previous = transcript
        self.ch = H("cohort", manifest, *self.at, transcript, *self._hashed(self.packages))

    def _hashed(self, signed):
        return [
            part for name in sorted(signed) for part in (name.encode(), H("signed-message", signed[name]))
        ]

    def roster_hash(self, aggregate):
        hashes = H("ciphertext-list", *(H("ciphertext", ciphertext) for ciphertext in aggregate))
        return hashes, H("roster", self.ch, hashes, *self._hashed(self.headers))

    def secrets(self, releases, rh, threshold):
        """Steps R4 and R5: the seed of who is in the roster, the mask key of who is not."""
        held = {name: {} for name in self.cohort}
        for signed in releases[:threshold]:
            body = body_of(signed)
            key = kdf(self.g, rh, frame(label("release-seal"), body["sender"].encode()))
            shares = ChaCha20Poly1305(key).decrypt(bytes(12), body["sealed_shares"], self.ch)
            for place, name in enumerate(self.cohort):
                x = self.members.index(body["sender"]) + 1
                held[name][x] = shares[32 * place : 32 * place + 32]
        found = {name: combine(shares) for name, shares in held.items()}
        for name in self.roster:
            package = body_of(self.packages[name])
            assert H("seed-commitment", package["package_id"], found[name]) == package["seed_commitment"]
        return found

    def unmasked(self, slots, secrets):
        """Step R5: take off the self-masks of the roster and the pair masks between it and the dropouts."""
        keys = {name: body_of(self.packages[name])["mask_key"] for name in self.cohort}
        streams = []
        for name in self.roster if secrets else ():
            info = frame(label("self-mask"), name.encode(), *self.at)
            streams.append((1, kdf(secrets[name], self.ch, info)))
        for lost in set(self.cohort) - set(self.roster):
            for name in self.roster:
                pair = [part.encode() for part in sorted((lost, name))]
                info = frame(label("pair-mask"), *pair, *self.at)
                seed = kdf(agreement(secrets[lost], keys[name]), self.ch, info)
                streams.append((1 if name < lost else -1, seed))
        left = list(slots)
        for sign, seed in streams:
            left = [(value - sign * mask) % T for value, mask in zip(left, prg(seed, len(left)), strict=True)]
        return left

    def verify_tags(self, slots):
        data, tags = slots[:-8], slots[-8:]
        offsets = prg(kdf(self.g, self.ch, label("tag-offsets")), 8)
        key = kdf(self.g, self.ch, label("tag-coefficients"))
        sums = [len(self.roster) * offset for offset in offsets]
        for block in range(0, len(data), 2**15):
            part = data[block : block + 2**15]
            words = aes_ctr(key, 16 * len(part), upper=block // 2**15)
            for place, value in enumerate(part):
                for k in range(8):
                    at = 16 * place + 2 * k
                    sums[k] += int.from_bytes(words[at : at + 2], "little") * value
        assert [value % T for value in sums] == tags

    def levels(self, slots, count, bits):
        top = 2 ** (bits - 1) - 1
        base, data = 2 * top * len(self.members) + 1, slots[:-8]
        return [
            data[entry % len(data)] // base ** (entry // len(data)) % base - top * len(self.roster)
            for entry in range(count)
        ]

    def transcript(self, rh, aggregate_hash, levels):
        digest = hashlib.sha256(
            b"".join(level.to_bytes(8, "little", signed=True) for level in levels)
        ).digest()
        parts = frame(label("transcript"), self.previous, rh, aggregate_hash, digest)
        return hmac.digest(self.g, parts, "sha256")


@pytest.mark.parametrize(
    ("participants", "mode", "gone", "ciphertexts"),
    [(3, "", (), 1), (5, "", (), 2), (5, "", ("bank-002",), 2), (4, "", ("bank-000",), 9)],
)
def test_two_implementations_of_unmask_agree(house, participants, mode, gone, ciphertexts):
    """Nine ciphertexts are more than one block of tag coefficients."""
    members = house(participants, mode)
    members.play(1)
    count = members.terms.layout.capacity(ciphertexts) - 5
    round_ = members.uploaded(2, 3, gone=gone, count=count)
    headers, aggregate = round_.aggregator.close()
    epoch, machine = members.epochs["bank-001"], members.machines["bank-001"]
    releases = []
    if members.terms.strict:
        opened = machine.open(headers, aggregate)
    else:
        releases = members.released(round_)
        opened = machine.unmask(releases)
    second = SecondOpinion(
        manifest=epoch.manifest_hash,
        group_key=epoch.group_key,
        members=members.names,
        round_index=2,
        attempt=3,
        transcript=members.state["bank-001"][1],
        packages=round_.packages,
        headers=headers,
    )
    hashes, rh = second.roster_hash(aggregate)
    secrets = second.secrets(releases, rh, members.terms.threshold) if releases else {}
    slots = [int(value) for part in aggregate for value in epoch.he_key.decrypt(part)]
    plain = second.unmasked(slots, secrets)
    second.verify_tags(plain)
    levels = second.levels(plain, count, members.terms.bits)
    assert rh == opened.roster_hash
    assert levels == opened.total.tolist() == round_.expected().tolist()
    assert second.transcript(rh, hashes, levels) == opened.transcript

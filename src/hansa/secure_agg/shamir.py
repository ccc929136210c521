"""Secrets shared so that any T of n shares give them back and T - 1 say nothing.

Shamir, "How to share a secret" (CACM 1979), over the prime field of 2^255 - 19. The share of the member at
index i of the roster is the polynomial's value at x = i + 1. Python's integers are not constant in time: an
attacker who can measure inside a participant's machine is not considered.
"""

from collections.abc import Mapping
from functools import lru_cache
from operator import mul

from hansa.errors import InvalidValue, MalformedMessage, NotEnoughShares
from hansa.secure_agg.identity import RandomBytes

FIELD_PRIME = 2**255 - 19
SHARE_BYTES = 32


def field_element(data: bytes) -> int:
    """Read 32 little-endian bytes, or raise MalformedMessage unless they are below the field's prime."""
    value = int.from_bytes(data, "little")
    if len(data) != SHARE_BYTES or value >= FIELD_PRIME:
        raise MalformedMessage(f"{len(data)} bytes are not an element of the field of 2^255 - 19")
    return value


def random_element(random_bytes: RandomBytes) -> bytes:
    """Draw a uniform field element, 32 bytes little-endian."""
    while True:
        value = int.from_bytes(random_bytes(SHARE_BYTES), "little") & (2**255 - 1)
        if value < FIELD_PRIME:  # fails once in 2^250 draws
            return value.to_bytes(SHARE_BYTES, "little")


def split(secret: bytes, *, threshold: int, shares: int, random_bytes: RandomBytes) -> list[bytes]:
    """Share a secret.

    Args:
        secret: Field element, 32 bytes little-endian.
        threshold: T, 1 to `shares`.
        shares: n.
        random_bytes: Source of the polynomial.

    Returns:
        n shares of 32 bytes; entry i belongs to x = i + 1.

    Raises:
        MalformedMessage: The secret is not a field element.
        InvalidValue: The threshold is not in 1..n.

    Guarantees:
        - Any T shares give the secret back.
        - Any T - 1 shares are uniform and independent of the secret.
    """
    if not 1 <= threshold <= shares:
        raise InvalidValue(f"threshold = {threshold} is not in 1..{shares}")
    coefficients = [field_element(secret)]
    coefficients += [field_element(random_element(random_bytes)) for _ in range(threshold - 1)]
    coefficients.reverse()
    result = []
    for x in range(1, shares + 1):
        value = 0
        for (
            coefficient
        ) in coefficients:  # Horner; x is small, so one division at the end is cheaper than one a step
            value = value * x + coefficient
        result.append((value % FIELD_PRIME).to_bytes(SHARE_BYTES, "little"))
    return result


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Recover a secret from shares, keyed by index i (x = i + 1).

    Raises:
        NotEnoughShares: Fewer than `threshold`.
        MalformedMessage: A share is not a field element.
    """
    if len(shares) < threshold:
        raise NotEnoughShares(f"{len(shares)} shares are fewer than the threshold {threshold}")
    holders = tuple(sorted(shares)[:threshold])
    values = [field_element(shares[holder]) for holder in holders]
    secret: int = sum(map(mul, _weights_at_zero(holders), values))
    return (secret % FIELD_PRIME).to_bytes(SHARE_BYTES, "little")


@lru_cache(maxsize=64)
def _weights_at_zero(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0 for the points x = i + 1. They are public; a round uses the same ones for every secret."""
    weights = []
    for holder in holders:
        numerator = denominator = 1
        for other in holders:
            if other != holder:
                numerator = numerator * (other + 1) % FIELD_PRIME
                denominator = denominator * (other - holder) % FIELD_PRIME
        weights.append(numerator * pow(denominator, -1, FIELD_PRIME) % FIELD_PRIME)
    return tuple(weights)

"""Constants of the encryption and the layout of an update in its plaintext slots.

One plaintext slot holds an integer modulo the 48-bit prime t. Several entries share a slot, each in its own
lane of a mixed-radix number whose radix exceeds the largest possible sum, so that adding n updates never
carries from one lane into the next. The noise margin of the encryption was measured up to
`MAXIMUM_PARTICIPANTS` additions.
"""

from dataclasses import dataclass

from hansa.errors import CohortTooLarge, CohortTooSmall, InvalidValue

SLOTS = 4096  # slots of a ciphertext = degree N of the ring
COEFFICIENT_MODULUS_BITS = (60, 41)  # one data prime and the special prime: 101 bits, SEAL's 128-bit row
COEFFICIENT_BITS = 60
PLAIN_MODULUS = 281474976694273  # t: the largest 48-bit prime that is 1 modulo 2N, so that slots exist
PLAIN_BITS = 48
MINIMUM_PARTICIPANTS = 3
MAXIMUM_PARTICIPANTS = 258
MINIMUM_BITS = 2
MAXIMUM_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many entries a slot carries for a cohort of a given size.

    Args:
        participants: Size n of the cohort, 3 to 258.
        bits: Width b of a quantised entry, 2 to 16; levels are in [-(2^(b-1)-1), 2^(b-1)-1].

    Raises:
        CohortTooSmall: `participants` is below 3.
        CohortTooLarge: `participants` is above 258.
        InvalidValue: `bits` is outside 2..16.

    Guarantees:
        - radix^lanes - 1 < t: the sum of n packed updates is below t and no lane carries into the next.
        - At 8 bits there are 5 lanes for n = 3, 4 for n <= 16 and 3 for n <= 258.
    """

    participants: int
    bits: int = 8

    def __post_init__(self) -> None:
        if self.participants < MINIMUM_PARTICIPANTS:
            raise CohortTooSmall(f"{self.participants} participants are fewer than {MINIMUM_PARTICIPANTS}")
        if self.participants > MAXIMUM_PARTICIPANTS:
            raise CohortTooLarge(f"{self.participants} participants are more than {MAXIMUM_PARTICIPANTS}")
        if not MINIMUM_BITS <= self.bits <= MAXIMUM_BITS:
            raise InvalidValue(f"bits = {self.bits} is not in {MINIMUM_BITS}..{MAXIMUM_BITS}")

    @property
    def maximum_level(self) -> int:
        """The largest level of one entry, 127 at 8 bits."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def radix(self) -> int:
        """One more than the largest sum of n shifted levels: (2^b - 2) n + 1."""
        return 2 * self.maximum_level * self.participants + 1

    @property
    def lanes(self) -> int:
        """Entries in one slot."""
        lanes = 1
        while self.radix ** (lanes + 1) <= PLAIN_MODULUS:
            lanes += 1
        return lanes

    @property
    def entries_per_ciphertext(self) -> int:
        """Entries in one ciphertext."""
        return self.lanes * SLOTS

    def ciphertexts_for(self, count: int) -> int:
        """Ciphertexts that `count` entries need."""
        return -(-count // self.entries_per_ciphertext)


def layout_for(participants: int, bits: int = 8) -> Layout:
    """Return the layout of a cohort; see `Layout` for bounds and errors."""
    return Layout(participants=participants, bits=bits)

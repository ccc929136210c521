"""Constants of the encryption and the layout of an update in its plaintext slots.

One plaintext slot holds an integer modulo the 48-bit prime t. Several entries share a slot, each in its own
lane of a mixed-radix number whose radix exceeds the largest possible sum, so that adding n updates never
carries from one lane into the next. The noise margin of the encryption was measured up to
`MAXIMUM_PARTICIPANTS` additions.
"""

from dataclasses import dataclass

from hansa import labels
from hansa.errors import CohortTooLarge, CohortTooSmall, InvalidValue
from hansa.secure_agg.derivation import labelled_hash

SLOTS = 4096  # slots of a ciphertext = degree N of the ring
COEFFICIENT_MODULUS_BITS = (60, 41)  # one data prime and the special prime: 101 bits, SEAL's 128-bit row
COEFFICIENT_BITS = 60
PLAIN_MODULUS = 281474976694273  # t: the largest 48-bit prime that is 1 modulo 2N, so that slots exist
PLAIN_BITS = 48
MINIMUM_PARTICIPANTS = 3
MAXIMUM_PARTICIPANTS = 258
MINIMUM_BITS = 2
MAXIMUM_BITS = 20
TAG_SLOTS = 8  # last slots of an upload: 8 tags with 16-bit coefficients, 2^-128 for whoever lacks the key
QUORUM = "quorum"
STRICT = "strict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many entries a slot carries for a cohort of a given size.

    Args:
        participants: Size n of the cohort, 3 to 258.
        bits: Width b of a quantised entry, 2 to 20; levels are in [-(2^(b-1)-1), 2^(b-1)-1].

    Raises:
        CohortTooSmall: `participants` is below 3.
        CohortTooLarge: `participants` is above 258.
        InvalidValue: `bits` is outside 2..20.

    Guarantees:
        - radix^lanes - 1 < t: the sum of n packed updates is below t and no lane carries into the next.
        - At 8 bits there are 5 lanes for n = 3, 4 for n <= 16 and 3 for n <= 258; at 20 bits 2 for n <= 16, else 1.
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
        """Entries that a ciphertext adds to an upload that has one already."""
        return self.lanes * SLOTS

    def capacity(self, ciphertexts: int) -> int:
        """Entries that an upload of so many ciphertexts holds beside its tag."""
        return self.lanes * (ciphertexts * SLOTS - TAG_SLOTS)

    def ciphertexts_for(self, count: int) -> int:
        """Ciphertexts that `count` entries and the tag need."""
        return -(-(-(-count // self.lanes) + TAG_SLOTS) // SLOTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the members of an epoch agree on beside who they are. Local configuration, hashed into the manifest.

    Args:
        participants: Members n of the roster.
        mode: "quorum", or "strict"; the latter where n = 3 and nothing is said.
        bits: Width of a quantised entry.
        noise_contributors: Fewest members whose updates may be in a sum that is opened, T to n, because only that many shares of
            noise make it private (`privacy.distributed`); 0 where T is enough. Then entries are packed without bounds (`wrapping`).

    Raises:
        InvalidValue: Another mode, a width or a number out of bounds.
        CohortTooSmall: n < 3, or quorum with n = 3, where any dropout would leave a sum of two.
        CohortTooLarge: See `Layout`.

    Guarantees:
        - threshold T = floor(2n/3) + 1 in quorum mode, n in strict mode.
        - `colluders` = 2T - n - 1, but n - 2 at most: so many members may side with a coordinator that tells
          different members different things.
        - `hash` differs for members that are configured differently.
    """

    participants: int
    mode: str = ""
    bits: int = 8
    noise_contributors: int = 0

    def __post_init__(self) -> None:
        Layout(participants=self.participants, bits=self.bits)
        if not self.mode:
            object.__setattr__(self, "mode", STRICT if self.participants == 3 else QUORUM)
        if self.mode not in (QUORUM, STRICT):
            raise InvalidValue(f"mode = {self.mode!r} is neither {QUORUM!r} nor {STRICT!r}")
        if self.mode == QUORUM and self.participants == 3:
            raise CohortTooSmall("3 participants cannot lose one; use strict mode")
        if self.noise_contributors and not self.threshold <= self.noise_contributors <= self.participants:
            raise InvalidValue(
                f"noise_contributors = {self.noise_contributors} is not in {self.threshold}..{self.participants}"
            )

    @property
    def strict(self) -> bool:
        """Whether every member must answer."""
        return self.mode == STRICT

    @property
    def threshold(self) -> int:
        """T: members that must remain, and shares that recover a secret."""
        return self.participants if self.strict else 2 * self.participants // 3 + 1

    @property
    def least_roster(self) -> int:
        """Members whose uploads must be in a sum that is opened: T, or the noise contributors where they are more."""
        return max(self.threshold, self.noise_contributors)

    @property
    def dropouts(self) -> int:
        """n - T: members that may vanish."""
        return self.participants - self.threshold

    @property
    def colluders(self) -> int:
        """Members that may collude with an equivocating coordinator."""
        return min(2 * self.threshold - self.participants - 1, self.participants - 2)

    @property
    def layout(self) -> Layout:
        """Layout of an update in its slots."""
        return Layout(participants=self.participants, bits=self.bits)

    @property
    def hash(self) -> bytes:
        """32 bytes over everything that two members must not have configured differently."""
        numbers = (
            self.participants,
            self.threshold,
            self.bits,
            self.layout.lanes,
            SLOTS,
            PLAIN_MODULUS,
            TAG_SLOTS,
            *COEFFICIENT_MODULUS_BITS,
            *(
                [self.noise_contributors] if self.noise_contributors else []
            ),  # terms from before this key keep their hash
        )
        return labelled_hash(
            labels.PARAMETERS, self.mode.encode(), *(number.to_bytes(8, "big") for number in numbers)
        )


def layout_for(participants: int, bits: int = 8) -> Layout:
    """Return the layout of a cohort; see `Layout` for bounds and errors."""
    return Layout(participants=participants, bits=bits)

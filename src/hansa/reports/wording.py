"""Words and numbers that every report writes the same way; imports nothing heavy."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer of protection.

    Attributes:
        key: Its key in `Study.protections`.
        name: What people call it.
        on: What it means that it is on.
        off: What it means that it is off.
    """

    key: str
    name: str
    on: str
    off: str


LAYERS = (
    Layer(
        key="differential_privacy",
        name="Differential privacy",
        on="Each participant clips what one record can contribute and adds noise before anything leaves it.",
        off="No noise is added. The model can give away single records.",
    ),
    Layer(
        key="own_noise_suffices",
        name="Own noise suffices",
        on="Each participant's own noise protects its records, whatever all others do.",
        off="The participants' shares of noise add up; the guarantee rests on several of them being honest.",
    ),
    Layer(
        key="secure_aggregation_masks",
        name="Secure aggregation",
        on="Masks hide every participant's update; they come off only the sum over all that took part.",
        off="Every participant holds the decryption key, so any of them could open another one's update.",
    ),
    Layer(
        key="homomorphic_encryption",
        name="Homomorphic encryption",
        on="The coordinator adds ciphertexts. It holds no key: it sees no update, no sum and no model.",
        off="The coordinator can read the sum of all updates in every round.",
    ),
    Layer(
        key="signatures",
        name="Signed messages",
        on="Every message is signed by its sender's identity key, pinned in a roster that all participants hold.",
        off="Messages can be forged in a participant's name.",
    ),
    Layer(
        key="compression",
        name="Compression",
        on="Only a share of the entries moves in a round, in few bits. Saves traffic, and noise with it.",
        off="Every entry moves in every round. Costs traffic, not privacy.",
    ),
    Layer(
        key="in_slot_tag",
        name="Proof of the sum",
        on="A secret tag inside the sum shows that the coordinator added exactly the participants' updates.",
        off="A malicious coordinator can put numbers of its own in place of the sum.",
    ),
    Layer(
        key="dropout_recovery",
        name="Dropout recovery",
        on="Up to a third of the participants may vanish in the middle of a round; the others go on.",
        off="Every participant must answer in every round, or the study ends.",
    ),
    Layer(
        key="crash_recovery",
        name="Crash recovery",
        on="A participant that crashes goes on where it was, without spending privacy or a mask twice.",
        off="What must survive a crash is kept in memory; a participant that crashes is lost to the study.",
    ),
    Layer(
        key="coordinator_equivocation_check",
        name="Equivocation check",
        on="No sum is applied unless the participants agree on whose updates are in it and on what came before.",
        off="A coordinator can tell different participants different things, and they do not notice.",
    ),
)


def layer_of(key: str) -> Layer:
    """Return the layer of a key of `Study.protections`; an unknown one is named by its key."""
    for layer in LAYERS:
        if layer.key == key:
            return layer
    name = key.replace("_", " ")
    return Layer(key=key, name=name.capitalize(), on="", off="")


def epsilon_text(epsilon: float) -> str:
    """Write ε with two decimals, rounded up: a spent budget is never shown smaller than it is."""
    hundredths = math.ceil(round(100 * epsilon, 6))  # round first: 100 * 7.98 is 798.0000000000001 in binary
    return f"{hundredths / 100:.2f}"


def delta_text(delta: float) -> str:
    """Write δ in powers of ten: 0.00001 is "1e-5"."""
    mantissa, _, exponent = f"{delta:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def printable(text: str) -> str:
    """Replace every character that a terminal could act on, such as those that move the cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)

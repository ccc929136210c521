"""The words and units of the demo's output, the same on terminal and page; imports nothing heavy."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A way of training that is compared: its key in report.json, its name, and what it stands for."""

    key: str
    name: str
    meaning: str


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


ARMS = (
    Arm(key="joint", name="joint", meaning="all banks together, with the study's protections"),
    Arm(
        key="local_only",
        name="local only, better of two",
        meaning="the better of the two ways a bank can go alone; the baseline to beat",
    ),
    Arm(
        key="local_only_same_network",
        name="local only, same network",
        meaning="the same network at each bank alone, without noise, with early stopping; mean over banks",
    ),
    Arm(
        key="local_only_logistic_regression",
        name="local only, logistic regression",
        meaning="logistic regression at each bank alone, without noise; mean over banks",
    ),
    Arm(
        key="local_only_dp",
        name="local only, same privacy",
        meaning="the same network at each bank alone, under the same differential privacy; mean over banks",
    ),
    Arm(
        key="federated_no_dp",
        name="joint, without noise",
        meaning="what differential privacy costs: the joint model without clipping and noise",
    ),
    Arm(
        key="federated_no_compression",
        name="joint, without compression",
        meaning="what compression costs: the joint model with every entry sent in every round",
    ),
    Arm(
        key="pooled",
        name="pooled, no protection",
        meaning="everybody's rows in one place, no protection at all; the ceiling, and what banks may not do",
    ),
    Arm(key="base", name="base, untrained", meaning="the public base model before any bank trained it"),
)

LAYERS = (
    Layer(
        key="differential_privacy",
        name="Differential privacy",
        on="Each bank clips what one record can contribute and adds noise before anything leaves it.",
        off="No noise is added. The model can give away single records.",
    ),
    Layer(
        key="own_noise_suffices",
        name="Own noise suffices",
        on="Each bank's own noise protects its records, whatever all others do.",
        off="The banks' shares of noise add up; the guarantee rests on several of them being honest.",
    ),
    Layer(
        key="secure_aggregation_masks",
        name="Secure aggregation",
        on="Masks hide every bank's update; they come off only the sum over all banks that took part.",
        off="Every bank holds the decryption key, so any of them could open another bank's update.",
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
        on="Every message of a bank is signed by its identity key, pinned in a roster that all banks hold.",
        off="Messages can be forged in a bank's name.",
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
        on="A secret tag inside the sum shows that the coordinator added exactly the banks' updates.",
        off="A malicious coordinator can put numbers of its own in place of the sum.",
    ),
    Layer(
        key="dropout_recovery",
        name="Dropout recovery",
        on="Up to a third of the banks may vanish in the middle of a round; the others go on.",
        off="Every bank must answer in every round, or the run ends.",
    ),
    Layer(
        key="crash_recovery",
        name="Crash recovery",
        on="A bank that crashes goes on where it was, without spending privacy or a mask twice.",
        off="What must survive a crash is kept in memory; a bank that crashes is lost to the study.",
    ),
    Layer(
        key="coordinator_equivocation_check",
        name="Equivocation check",
        on="No sum is applied unless the banks agree on whose updates are in it and on what came before.",
        off="A coordinator can tell different banks different things, and they do not notice.",
    ),
)

NOT_RUN = "not run"


def layer_of(key: str) -> Layer:
    """Return the layer of a key of `Study.protections`; an unknown one is named by its key."""
    for layer in LAYERS:
        if layer.key == key:
            return layer
    name = key.replace("_", " ")
    return Layer(key=key, name=name.capitalize(), on="", off="")


def bytes_text(count: float) -> str:
    """Write a number of bytes in decimal units: 98916 is "98.9 kB".

    Guarantees:
        - Three significant digits, and never 1000 of a unit that has a larger one.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return (
                f"{count:.0f} {unit}"
                if unit == "B" or count >= 99.95
                else f"{count:.{1 + (count < 9.995)}f} {unit}"
            )
        count /= 1000
    return f"{count:.2f} TB"


def seconds_text(seconds: float) -> str:
    """Write a duration: 0.31 is "0.31 s", 42.3 is "42 s", 100 is "1 min 40 s"."""
    if round(seconds) >= 60:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"


def score_text(score: float | None) -> str:
    """Write an AUC with three decimals, or say that the arm was not run."""
    return NOT_RUN if score is None else f"{score:.3f}"


def gain_text(gain: float | None) -> str:
    """Write a relative gain with its sign: 0.123 is "+12.3 %"."""
    return NOT_RUN if gain is None else f"{100 * gain:+.1f} %".replace("-", "\N{MINUS SIGN}")


def epsilon_text(epsilon: float) -> str:
    """Write ε with two decimals, rounded up: a spent budget is never shown smaller than it is."""
    hundredths = math.ceil(round(100 * epsilon, 6))  # round first: 100 * 7.98 is 798.0000000000001 in binary
    return f"{hundredths / 100:.2f}"


def delta_text(delta: float) -> str:
    """Write δ in powers of ten: 0.00001 is "1e-5"."""
    mantissa, _, exponent = f"{delta:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def factor_text(epsilon: float) -> str:
    """Write e to the power ε with two significant digits: 8 is "3,000"."""
    factor = float(f"{math.exp(min(epsilon, 700)):.1e}")
    return f"{factor:,.0f}" if 10 <= factor < 1e9 else f"{factor:.2g}"


def printable(text: str) -> str:
    """Replace every character that a terminal could act on, such as those that move the cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)

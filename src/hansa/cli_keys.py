"""Public keys that an auditor knows, as several commands of `hansa audit` take them."""

from collections.abc import Sequence

from hansa.errors import UsageError


def keys_of(texts: Sequence[str]) -> dict[str, bytes]:
    """Read PARTICIPANT=HEX, once each."""
    found = {}
    for text in texts:
        name, _, digits = text.partition("=")
        try:
            value = bytes.fromhex(digits)
        except ValueError:
            value = b""
        if not name or len(value) != 32 or name in found:
            raise UsageError(f"--key is {text[:80]!r}, not PARTICIPANT= and 64 hexadecimal digits, once each")
        found[name] = value
    return found

"""Types of the fields of signed documents: each value has one spelling, and anything else is refused.

bytes     hexadecimal for hashes and keys of a known length, base64 for certificates
time      RFC 3339 in UTC with whole seconds, `2026-11-26T03:42:00Z`
address   `host:port`; an IPv6 host stands in brackets
"""

import base64
import binascii
import re
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import AddressValueError, IPv6Address
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator

CERTIFICATE_BYTES_MOST = 2048
ADDRESS_CHARACTERS_MOST = 262
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*", re.ASCII)


def utc_text(time: datetime) -> str:
    """Spell a time as documents do; it has a zone, and parts of a second are left out."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def whole_seconds(time: datetime) -> datetime:
    """Leave out the parts of a second, which no document and no certificate has."""
    return time.astimezone(UTC).replace(microsecond=0)


def host_and_port(address: str) -> tuple[str, int]:
    """Split an address into host, without brackets, and port.

    Raises:
        ValueError: It is not `host:port`.
    """
    host, colon, port = address[: ADDRESS_CHARACTERS_MOST + 1].rpartition(":")
    if not colon or not re.fullmatch(r"[1-9]\d{0,4}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(f"{address[:80]!r} is not host:port with a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            IPv6Address(host[1:-1])
        except AddressValueError as error:
            raise ValueError(f"{host[:80]!r} is not an IPv6 address in brackets") from error
        return host[1:-1], int(port)
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError(f"{host[:80]!r} is not a host name or address")
    return host, int(port)


def _hexadecimal(length: int) -> Callable[[Any], bytes]:
    def read(value: Any) -> bytes:
        if isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{2 * length}}}", value):
            return bytes.fromhex(value)
        if isinstance(value, bytes) and len(value) == length:
            return value
        raise ValueError(f"is not {2 * length} hexadecimal digits in small letters")

    return read


def _base64(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            found = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            found = b""
        if base64.b64encode(found).decode() != value:  # unused bits that are not zero, too
            raise ValueError("is not base64 in its one spelling")
        value = found
    if not isinstance(value, bytes) or not 1 <= len(value) <= CERTIFICATE_BYTES_MOST:
        raise ValueError(f"is not 1 to {CERTIFICATE_BYTES_MOST} bytes")
    return value


def _time(value: Any) -> datetime:
    if isinstance(value, str) and _TIME.fullmatch(value):
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return whole_seconds(value)
    raise ValueError("is not a time such as 2026-11-26T03:42:00Z")


def _address(value: str) -> str:
    host_and_port(value)
    return value


def _spelled_as_hex(value: bytes) -> str:
    return value.hex()


def _spelled_as_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


Bytes16 = Annotated[
    bytes, PlainValidator(_hexadecimal(16)), PlainSerializer(_spelled_as_hex, return_type=str)
]
Bytes32 = Annotated[
    bytes, PlainValidator(_hexadecimal(32)), PlainSerializer(_spelled_as_hex, return_type=str)
]
Bytes64 = Annotated[
    bytes, PlainValidator(_hexadecimal(64)), PlainSerializer(_spelled_as_hex, return_type=str)
]
Der = Annotated[bytes, PlainValidator(_base64), PlainSerializer(_spelled_as_base64, return_type=str)]
UtcTime = Annotated[datetime, PlainValidator(_time), PlainSerializer(utc_text, return_type=str)]
ParticipantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Address = Annotated[str, Field(max_length=ADDRESS_CHARACTERS_MOST), AfterValidator(_address)]

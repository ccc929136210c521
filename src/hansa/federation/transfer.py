"""How ciphertexts are laid into messages, and the bounds that both ends of the data plane set to gRPC.

A message is one mebibyte at most: large enough that a stream runs at the speed of TLS, small enough that neither end ever holds
more than a few of them.
"""

import hashlib
from collections.abc import Iterable, Iterator

from hansa.errors import CiphertextSizeMismatch, MessageTooLarge
from hansa.federation.aggregator_pb2 import Attempt
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES

UPLOAD_CHUNK = 32  # ciphertexts
DOWNLOAD_CHUNK = 16
MESSAGE_BYTES = (1 << 20) + 4096
METADATA_BYTES = 8192
WINDOW_BYTES = 2 << 20
HANDSHAKE_MILLISECONDS = 10_000
KEEPALIVE_MILLISECONDS = 20_000
_ANSWER_MILLISECONDS = 10_000
_IDLE_MILLISECONDS = 600_000

Options = list[tuple[str, int]]

_COMMON: Options = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", _ANSWER_MILLISECONDS),
    ("grpc.http2.max_pings_without_data", 0),  # a server that adds an upload sends nothing for seconds
    # A window that does not grow: what is on its way in a stream is what a cut costs, and memory for each of many.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
]


def server_options(streams_per_connection: int) -> Options:
    """Return gRPC's options of a server: whoever does not finish a handshake, or does not answer, is let go."""
    return [
        *_COMMON,
        ("grpc.max_concurrent_streams", streams_per_connection),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MILLISECONDS),
        ("grpc.max_connection_idle_ms", _IDLE_MILLISECONDS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MILLISECONDS // 2),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half of the calls
    ]


def channel_options() -> Options:
    """Return gRPC's options of a client: a peer that is gone is noticed, and tried again soon."""
    return [
        *_COMMON,
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_retries", 0),  # who tries again must know what arrived
    ]


def attempt_of(session_id: bytes, round_index: int, attempt: int) -> Attempt:
    """Name an attempt in a message."""
    return Attempt(session_id=session_id, round=round_index, attempt=attempt)


def header_hash(signed_header: bytes) -> bytes:
    """Return SHA-256 of a signed header: by it the two ends of a broken stream find out that they mean the same upload."""
    return hashlib.sha256(signed_header).digest()


def split(ciphertexts: bytes, ciphertext_bytes: int, most: int) -> Iterator[bytes]:
    """Take the ciphertexts of a chunk apart, untrusted.

    Args:
        ciphertexts: One after another.
        ciphertext_bytes: Length of each, `SEEDED_BYTES` up or `EXPANDED_BYTES` down.
        most: How many a chunk may hold.

    Raises:
        CiphertextSizeMismatch: It holds none, or not a whole number of them.
        MessageTooLarge: It holds more than `most`.
    """
    count, rest = divmod(len(ciphertexts), ciphertext_bytes)
    if rest or not count:
        raise CiphertextSizeMismatch(
            f"a chunk of {len(ciphertexts)} bytes is no whole number of ciphertexts of {ciphertext_bytes} bytes"
        )
    if count > most:
        raise MessageTooLarge(f"a chunk holds {count} ciphertexts, the bound is {most}")
    return (
        ciphertexts[start : start + ciphertext_bytes]
        for start in range(0, len(ciphertexts), ciphertext_bytes)
    )


def split_upload(ciphertexts: bytes) -> Iterator[bytes]:
    """Take a chunk of an upload apart; see `split`."""
    return split(ciphertexts, SEEDED_BYTES, UPLOAD_CHUNK)


def split_download(ciphertexts: bytes) -> Iterator[bytes]:
    """Take a chunk of an aggregate apart; see `split`."""
    return split(ciphertexts, EXPANDED_BYTES, DOWNLOAD_CHUNK)


def in_chunks(ciphertexts: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Lay ciphertexts one after another, `most` in a chunk."""
    chunk: list[bytes] = []
    for ciphertext in ciphertexts:
        chunk.append(ciphertext)
        if len(chunk) == most:
            yield b"".join(chunk)
            chunk.clear()
    if chunk:
        yield b"".join(chunk)

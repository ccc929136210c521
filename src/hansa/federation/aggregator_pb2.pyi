from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Attempt(_message.Message):
    __slots__ = ("session_id", "round", "attempt")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    round: int
    attempt: int
    def __init__(self, session_id: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class UploadPart(_message.Message):
    __slots__ = ("begin", "chunk")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    begin: UploadBegin
    chunk: UploadChunk
    def __init__(self, begin: _Optional[_Union[UploadBegin, _Mapping]] = ..., chunk: _Optional[_Union[UploadChunk, _Mapping]] = ...) -> None: ...

class UploadBegin(_message.Message):
    __slots__ = ("attempt", "signed_header", "ciphertext_count", "ciphertext_bytes", "first_index")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SIGNED_HEADER_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_COUNT_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    signed_header: bytes
    ciphertext_count: int
    ciphertext_bytes: int
    first_index: int
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., signed_header: _Optional[bytes] = ..., ciphertext_count: _Optional[int] = ..., ciphertext_bytes: _Optional[int] = ..., first_index: _Optional[int] = ...) -> None: ...

class UploadChunk(_message.Message):
    __slots__ = ("first_index", "ciphertexts")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXTS_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    ciphertexts: bytes
    def __init__(self, first_index: _Optional[int] = ..., ciphertexts: _Optional[bytes] = ...) -> None: ...

class UploadReceipt(_message.Message):
    __slots__ = ("ciphertext_count",)
    CIPHERTEXT_COUNT_FIELD_NUMBER: _ClassVar[int]
    ciphertext_count: int
    def __init__(self, ciphertext_count: _Optional[int] = ...) -> None: ...

class UploadStatusRequest(_message.Message):
    __slots__ = ("attempt", "header_hash")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    HEADER_HASH_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    header_hash: bytes
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., header_hash: _Optional[bytes] = ...) -> None: ...

class UploadStatusReply(_message.Message):
    __slots__ = ("ciphertexts_held", "accepted")
    CIPHERTEXTS_HELD_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ciphertexts_held: int
    accepted: bool
    def __init__(self, ciphertexts_held: _Optional[int] = ..., accepted: _Optional[bool] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("attempt", "first_index")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    first_index: int
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., first_index: _Optional[int] = ...) -> None: ...

class DownloadPart(_message.Message):
    __slots__ = ("begin", "chunk")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    begin: DownloadBegin
    chunk: DownloadChunk
    def __init__(self, begin: _Optional[_Union[DownloadBegin, _Mapping]] = ..., chunk: _Optional[_Union[DownloadChunk, _Mapping]] = ...) -> None: ...

class DownloadBegin(_message.Message):
    __slots__ = ("signed_headers", "ciphertext_count")
    SIGNED_HEADERS_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_COUNT_FIELD_NUMBER: _ClassVar[int]
    signed_headers: _containers.RepeatedScalarFieldContainer[bytes]
    ciphertext_count: int
    def __init__(self, signed_headers: _Optional[_Iterable[bytes]] = ..., ciphertext_count: _Optional[int] = ...) -> None: ...

class DownloadChunk(_message.Message):
    __slots__ = ("first_index", "ciphertexts")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXTS_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    ciphertexts: bytes
    def __init__(self, first_index: _Optional[int] = ..., ciphertexts: _Optional[bytes] = ...) -> None: ...

class PackageLeavesRequest(_message.Message):
    __slots__ = ("attempt", "dealer")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DEALER_FIELD_NUMBER: _ClassVar[int]
    attempt: Attempt
    dealer: str
    def __init__(self, attempt: _Optional[_Union[Attempt, _Mapping]] = ..., dealer: _Optional[str] = ...) -> None: ...

class PackageLeavesReply(_message.Message):
    __slots__ = ("leaves",)
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    leaves: bytes
    def __init__(self, leaves: _Optional[bytes] = ...) -> None: ...

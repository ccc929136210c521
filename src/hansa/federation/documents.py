"""Signed documents: what parties of a consortium hand each other as files or over the network.

    {"body": {"schema": "hansa/NAME/vN", ...}, "signature": "<128 hexadecimal digits>"}

A document has one spelling, its canonical JSON (RFC 8785): a copy that differs in a byte is another document. The signature
(Ed25519, RFC 8032) covers the schema, with its version, and the SHA-256 of the canonical body (`Identity.sign`): a signature over
one kind of document is never one over another. What a document must say is checked by a `verify_*` beside its kind, against
pinned values only; reading it here checks its form.

A document is read in this order: length, UTF-8, JSON without repeated keys, canonical spelling, envelope, schema, fields.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict, ValidationError

from hansa import labels
from hansa.errors import BadSignature, DocumentMalformed, DocumentMissing, DocumentRejected
from hansa.secure_agg.derivation import labelled_hash
from hansa.secure_agg.identity import verify_signed_by
from hansa.study_problems import lowered

SIGNATURE_BYTES = 64
Signer = Callable[[str, bytes], bytes]  # schema, canonical body -> signature; `Identity.sign` is one


class Body(BaseModel):
    """The signed part of a document. Unknown and missing keys are errors, types are exact, nothing changes afterwards."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        validate_default=True,
    )
    SCHEMA: ClassVar[str]
    BYTES_MOST: ClassVar[int] = 16384

    @classmethod
    def title(cls) -> str:
        """Its name in messages."""
        return cls.SCHEMA.split("/")[1].replace("-", " ")

    def canonical(self) -> bytes:
        """Return the canonical JSON."""
        return rfc8785.dumps({"schema": self.SCHEMA, **self.model_dump(by_alias=True, mode="json")})


BodyType = TypeVar("BodyType", bound=Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document(Generic[BodyType]):
    """A body with its signature; who signed it is not checked yet.

    Attributes:
        body: What it says.
        canonical: Canonical JSON of the body, which is what is signed and hashed.
        signature: 64 bytes.
    """

    body: BodyType
    canonical: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @classmethod
    def sign(cls, body: BodyType, sign: Signer) -> Self:
        """Sign a body."""
        canonical = body.canonical()
        return cls(body=body, canonical=canonical, signature=sign(body.SCHEMA, canonical))

    @property
    def digest(self) -> bytes:
        """SHA-256 over label, schema and canonical body, 32 bytes: the name by which other documents speak of this one.

        It leaves the signature out, so that one statement has one name.
        """
        return labelled_hash(labels.DOCUMENT, self.body.SCHEMA.encode(), self.canonical)

    def encode(self) -> bytes:
        """Return the document as it is stored and sent."""
        return b'{"body":' + self.canonical + b',"signature":"' + self.signature.hex().encode() + b'"}'

    def verify_signed_by(self, public_key: bytes, signer: str) -> None:
        """Check the signature.

        Args:
            public_key: Pinned Ed25519 key of whoever must have signed it, 32 bytes.
            signer: Name for the message.

        Raises:
            DocumentRejected: It is not a signature of this key over this body.
        """
        try:
            verify_signed_by(public_key, self.body.SCHEMA, self.canonical, self.signature, signer=signer)
        except BadSignature as error:
            raise DocumentRejected(f"the {self.body.title()} is not signed by {signer}") from error


def read_document(raw: bytes, kind: type[BodyType]) -> Document[BodyType]:
    """Read a document of a known kind.

    Args:
        raw: The document as it came, untrusted; one line feed may follow it.
        kind: What it must be.

    Returns:
        The document. Its signature is not checked yet.

    Raises:
        DocumentMalformed: It is longer than documents of this kind are, is not canonical, is of another kind or version, or a
            field is missing, unknown, of the wrong type or out of its bounds. The message shows no value of the document.

    Guarantees:
        - Whatever the bytes are, nothing else is raised.
        - `encode` of the result gives the bytes that were read, and the body says all that they say.
    """
    title = kind.title()
    if len(raw) > kind.BYTES_MOST:
        raise DocumentMalformed(f"the {title} has {len(raw)} bytes, the bound is {kind.BYTES_MOST}")
    raw = raw.removesuffix(b"\n")
    envelope = _canonical_json(raw, title)
    if not isinstance(envelope, dict) or set(envelope) != {"body", "signature"}:
        raise DocumentMalformed(f"the {title} has not exactly the keys body and signature")
    body, signature = envelope["body"], envelope["signature"]
    if not isinstance(body, dict) or body.get("schema") != kind.SCHEMA:
        raise DocumentMalformed(f"this is not a document of the form {kind.SCHEMA}")
    if not isinstance(signature, str) or len(signature) != 2 * SIGNATURE_BYTES:
        raise DocumentMalformed(f"the signature of the {title} has not {2 * SIGNATURE_BYTES} digits")
    canonical = rfc8785.dumps(body)
    try:
        read = kind.model_validate_json(rfc8785.dumps({k: v for k, v in body.items() if k != "schema"}))
        found = Document(body=read, canonical=canonical, signature=bytes.fromhex(signature))
    except ValidationError as error:
        problem = _problem(error, title)
    except (ValueError, RecursionError):
        problem = DocumentMalformed(f"the {title} holds a value that is none")
    else:
        if read.canonical() == canonical and found.encode() == raw:
            return found
        problem = DocumentMalformed(f"the {title} holds a value in another spelling than its own")
    raise problem  # outside the handler, so that pydantic's report does not travel along


@lru_cache(maxsize=4096)
def reread_document(raw: bytes, kind: type[BodyType]) -> Document[BodyType]:
    """Read a document from the own journal or home, again and again; as `read_document`, and the same bytes are parsed once."""
    return read_document(raw, kind)


def load_document(path: Path, kind: type[BodyType]) -> Document[BodyType]:
    """Read a document from a file that somebody sent.

    Raises:
        DocumentMissing: The file cannot be read.
        DocumentMalformed: See `read_document`.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(kind.BYTES_MOST + 2)
    except OSError as error:
        raise DocumentMissing(f"{str(path)!r} cannot be read: {lowered(error.strerror)}") from error
    return read_document(raw, kind)


def _canonical_json(raw: bytes, title: str) -> Any:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_refused)
        spelled = rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        reason = (
            lowered(str(error)) if isinstance(error, _RepeatedKey) else "not JSON that has a canonical form"
        )
        raise DocumentMalformed(f"the {title} is {reason}") from None
    if spelled != raw:
        raise DocumentMalformed(f"the {title} is not in its canonical form (RFC 8785)")
    return value


class _RepeatedKey(ValueError):
    pass


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedKey("JSON that says a key twice")
    return found


def _refused(_constant: str) -> NoReturn:
    raise ValueError("not a number")


def _problem(error: ValidationError, title: str) -> DocumentMalformed:
    """Name the first thing that is wrong, without a value of the document: it may be a secret."""
    detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, detail["loc"])) or "it"
    reason = lowered(detail["msg"]).removeprefix("value error, ")
    return DocumentMalformed(f"the {title} is not well-formed: {place[:100]}: {reason[:200]}")

"""Errors as gRPC statuses, and statuses as errors again.

The stable code of an error travels in the trailing metadata under `hansa-error`; the status is for software that does not know
hansa. A client makes errors only of a list of kinds that the service can mean: a coordinator cannot pick one at will.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc

from hansa.errors import (
    AggregateHashMismatch,
    AuthenticationFailed,
    BadSignature,
    CertificateRejected,
    CiphertextSizeMismatch,
    CohortMismatch,
    CoordinatorUnreachable,
    DocumentMalformed,
    DuplicateMessage,
    Error,
    FederationError,
    HeParameterMismatch,
    InternalFailure,
    MalformedCiphertext,
    MalformedMessage,
    MessageTooLarge,
    ModelDivergence,
    NotAMember,
    NotInCohort,
    OutOfOrder,
    PackageLeavesMissing,
    ProtocolError,
    ResultExpired,
    SpoolQuotaExceeded,
    StaleRound,
    StateError,
    StateRollback,
    StoreDamaged,
    StoreNotWritable,
    TooManyCalls,
    TranscriptDivergence,
    TransportError,
    UnknownSender,
    UploadTooSlow,
    WorkerFailed,
    WrongEpoch,
    WrongSession,
)

CODE_KEY = "hansa-error"
_MOST_TEXT = 500
_STATUS: dict[type[Error], Any] = {
    CertificateRejected: grpc.StatusCode.UNAUTHENTICATED,
    AuthenticationFailed: grpc.StatusCode.UNAUTHENTICATED,
    UnknownSender: grpc.StatusCode.PERMISSION_DENIED,
    BadSignature: grpc.StatusCode.PERMISSION_DENIED,
    NotInCohort: grpc.StatusCode.PERMISSION_DENIED,
    MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
    CiphertextSizeMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    MalformedCiphertext: grpc.StatusCode.INVALID_ARGUMENT,
    AggregateHashMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    DuplicateMessage: grpc.StatusCode.ALREADY_EXISTS,
    ResultExpired: grpc.StatusCode.NOT_FOUND,
    PackageLeavesMissing: grpc.StatusCode.NOT_FOUND,
    UploadTooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    StoreNotWritable: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WorkerFailed: grpc.StatusCode.UNAVAILABLE,
    DocumentMalformed: grpc.StatusCode.INVALID_ARGUMENT,
    NotAMember: grpc.StatusCode.PERMISSION_DENIED,
    FederationError: grpc.StatusCode.FAILED_PRECONDITION,
    ProtocolError: grpc.StatusCode.FAILED_PRECONDITION,
    Error: grpc.StatusCode.INTERNAL,
}

# What the aggregator can mean.
AGGREGATOR_ERRORS: tuple[type[Error], ...] = (
    AggregateHashMismatch,
    AuthenticationFailed,
    BadSignature,
    CertificateRejected,
    CiphertextSizeMismatch,
    CohortMismatch,
    DuplicateMessage,
    HeParameterMismatch,
    MalformedCiphertext,
    MalformedMessage,
    MessageTooLarge,
    ModelDivergence,
    NotInCohort,
    OutOfOrder,
    PackageLeavesMissing,
    ResultExpired,
    SpoolQuotaExceeded,
    StaleRound,
    StateRollback,
    StoreDamaged,
    StoreNotWritable,
    TooManyCalls,
    TranscriptDivergence,
    UnknownSender,
    UploadTooSlow,
    WorkerFailed,
    WrongEpoch,
    WrongSession,
)
_TRANSIENT_ERRORS = (StoreNotWritable, TooManyCalls, WorkerFailed)
_OWN_FAULTS = (StateError, WorkerFailed)
_UNVERIFIED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
# Without a code of ours these mean that a connection broke, a server starts or ends, or nobody is there.
_TRANSIENT_STATUSES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


# -- at the server ---------------------------------------------------------------------------------------


@contextmanager
def answering(context: Any, report: Callable[[Exception], None]) -> Iterator[None]:
    """Turn errors of a call into its status.

    Args:
        context: gRPC's context of the call.
        report: Receives what was not foreseen, of which the caller learns nothing; and what is wrong on this side, such as a disk
            that is full, which whoever runs it has to mend.
    """
    try:
        yield
    except Error as error:
        if isinstance(error, _OWN_FAULTS):
            report(error)
        abort(context, error)
    except grpc.RpcError:
        raise  # the caller has gone, and nobody hears the answer
    except Exception as error:
        report(error)
        abort(context, InternalFailure("the coordinator failed at this call"))


def abort(context: Any, error: Error) -> NoReturn:
    """End a call with the status that stands for an error."""
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    context.set_trailing_metadata(((CODE_KEY, error.code),))
    context.abort(status, error.message[:_MOST_TEXT])
    raise error  # for the type checker: the line above does not return


# -- at the client ---------------------------------------------------------------------------------------


def error_of(failed: Any, kinds: Collection[type[Error]] = AGGREGATOR_ERRORS) -> Error:
    """Return the error that a failed call stands for.

    Args:
        failed: The `grpc.RpcError`, untrusted.
        kinds: What the service can mean.

    Guarantees:
        - Only `kinds` and errors of the transport come out, whatever the peer sends; texts are printable and bounded.
    """
    text, code = _text(failed), _code(failed)
    for kind in kinds:
        if kind.code == code:
            return kind(f"the coordinator refuses: {text}")
    if _is_foreign(failed, code):
        return AuthenticationFailed(f"the coordinator is not who it should be: {text}")
    if not code and failed.code() in _TRANSIENT_STATUSES:
        return CoordinatorUnreachable(f"the coordinator does not answer: {text}")
    return TransportError(f"the coordinator answers {failed.code().name}: {text}")


def is_transient(failed: Any) -> bool:
    """Whether the same call may succeed a little later."""
    code = _code(failed)
    if code:
        return any(kind.code == code for kind in _TRANSIENT_ERRORS) or code == InternalFailure.code
    return failed.code() in _TRANSIENT_STATUSES and not _is_foreign(failed, code)


def says_why(failed: Any) -> bool:
    """Whether the peer has said what is wrong. It has not where the caller's own time was over, or the connection broke first."""
    return bool(_code(failed))


def _is_foreign(failed: Any, code: str) -> bool:
    """Whether the handshake failed at the server's certificate; gRPC says so in words only."""
    text = failed.details() or ""
    unverified = failed.code() is grpc.StatusCode.UNAVAILABLE and any(word in text for word in _UNVERIFIED)
    return not code and (unverified or failed.code() is grpc.StatusCode.UNAUTHENTICATED)


def _code(failed: Any) -> str:
    for key, value in failed.trailing_metadata() or ():
        if key == CODE_KEY and isinstance(value, str):
            return value
    return ""


def _text(failed: Any) -> str:
    text = (failed.details() or failed.code().name)[:_MOST_TEXT]
    return "".join(letter if letter.isprintable() else " " for letter in text)

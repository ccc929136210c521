"""Errors over gRPC: the same error comes out, and none that the service cannot mean."""

import grpc
import pytest

from hansa.errors import (
    AuthenticationFailed,
    BudgetExhausted,
    CoordinatorUnreachable,
    Error,
    InternalFailure,
    Interrupted,
    StaleRound,
    TransportError,
)
from hansa.federation.error_status import AGGREGATOR_ERRORS, CODE_KEY, answering, error_of, is_transient


class Aborted(Exception):
    pass


class Context:
    """Stands for gRPC's."""

    def __init__(self):
        self.metadata = ()

    def set_trailing_metadata(self, metadata):
        self.metadata = metadata

    def abort(self, status, details):
        self.status, self.details = status, details
        raise Aborted


class Failed(grpc.RpcError):
    """Stands for a failed call."""

    def __init__(self, status, details, metadata=()):
        self._found = status, details, metadata

    def code(self):
        return self._found[0]

    def details(self):
        return self._found[1]

    def trailing_metadata(self):
        return self._found[2]


def sent(error, report=None):
    """Let an error pass through both ends; what the client sees of it."""
    context = Context()
    with pytest.raises(Aborted), answering(context, report or (lambda _: None)):
        raise error
    return Failed(context.status, context.details, context.metadata)


@pytest.mark.parametrize("kind", AGGREGATOR_ERRORS, ids=lambda kind: kind.code)
def test_an_error_of_the_service_comes_out_as_the_same_kind(kind):
    found = error_of(sent(kind("bank-1 is wrong")))
    assert type(found) is kind
    assert "bank-1 is wrong" in found.message
    assert found.hint == kind.default_hint


def test_what_was_not_foreseen_is_reported_and_tells_the_caller_nothing():
    reported, secret = [], ValueError("a secret")
    failed = sent(secret, reported.append)
    assert reported == [secret]
    assert "secret" not in failed.details()
    assert failed.trailing_metadata() == ((CODE_KEY, InternalFailure.code),)
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert type(error_of(failed)) is TransportError


def test_a_caller_that_has_gone_is_not_answered():
    context = Context()
    with pytest.raises(grpc.RpcError), answering(context, lambda _: None):
        raise grpc.RpcError
    assert not hasattr(context, "status")


@pytest.mark.parametrize("kind", [BudgetExhausted, Interrupted, InternalFailure, Error])
def test_a_coordinator_cannot_pick_an_error_that_the_service_does_not_mean(kind):
    found = error_of(sent(kind("x")))
    assert type(found) is TransportError
    assert found.exit_status == 69


def test_texts_of_a_peer_are_printable_and_bounded():
    metadata = ((CODE_KEY, StaleRound.code),)
    found = error_of(Failed(grpc.StatusCode.UNKNOWN, "a\x1b[31m\n" + "x" * 9999, metadata))
    assert type(found) is StaleRound
    assert found.message.isprintable()
    assert len(found.message) < 600


def test_a_server_that_is_not_the_right_one_is_no_matter_of_trying_again():
    for status, text in (
        (grpc.StatusCode.UNAVAILABLE, "SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: unable to get local issuer"),
        (
            grpc.StatusCode.UNAVAILABLE,
            "Custom verification check failed: Hostname Verification Check failed.",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, "call host does not match SSL server name"),
    ):
        failed = Failed(status, text)
        assert not is_transient(failed)
        found = error_of(failed)
        assert (type(found), found.exit_status) == (AuthenticationFailed, 4)


@pytest.mark.parametrize(
    ("status", "transient", "kind"),
    [
        ("UNAVAILABLE", True, CoordinatorUnreachable),
        ("CANCELLED", True, CoordinatorUnreachable),
        ("DEADLINE_EXCEEDED", True, CoordinatorUnreachable),
        ("INTERNAL", True, CoordinatorUnreachable),
        ("UNIMPLEMENTED", False, TransportError),
        ("PERMISSION_DENIED", False, TransportError),
    ],
)
def test_a_broken_connection_is_tried_again_and_an_answer_is_not(status, transient, kind):
    failed = Failed(getattr(grpc.StatusCode, status), None, None)
    assert is_transient(failed) is transient
    assert type(error_of(failed)) is kind


def test_only_what_may_pass_by_itself_is_tried_again():
    codes = {kind.code for kind in AGGREGATOR_ERRORS if is_transient(sent(kind("x")))}
    assert codes == {"store_not_writable", "too_many_calls", "worker_failed"}
    assert is_transient(sent(ValueError("x")))

"""Checks of the way to the coordinator: each of its doors, its clock, its versions."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hansa.errors import (
    CertificateRejected,
    CoordinatorUnreachable,
    FlowerRefused,
    InvalidValue,
    NodeNotAccepted,
    NotAMember,
    WrongSession,
)
from hansa.federation.aggregator_pb2 import UploadStatusRequest
from hansa.federation.aggregator_pb2_grpc import AggregatorStub
from hansa.federation.checks import Check, Finding, fail, failure, ok, skipped
from hansa.federation.error_status import error_of
from hansa.federation.files import read_private_file
from hansa.federation.machine_checks import EXACT_PACKAGES, look_at_clock_against
from hansa.federation.mending import install
from hansa.federation.tls_authority import to_pem
from hansa.federation.tls_files import TlsSource
from hansa.federation.transfer import attempt_of, channel_options, header_hash
from hansa.federation.versions import PROTOCOL, versions_here
from hansa.participant.consortium_client import ConsortiumClient
from hansa.participant.coordinator_channel import CoordinatorChannel, Patience
from hansa.participant.door_probe import try_door
from hansa.participant.examination import Examination
from hansa.participant.fleet_client import FleetClient, client_tls
from hansa.secure_agg.identity import SESSION_BYTES

INVITE_AGAIN = "hansa participant join INVITATION.json --home NEW_HOME"
LOOK_THERE = (
    "at the coordinator: hansa coordinator doctor"  # the door opens, and what is behind it does not answer
)


def look_at_enrolment_door(place: Examination) -> Iterator[Finding]:
    """Try the door for those without a certificate, and ask whether it serves."""
    home, seconds = place.home, place.door_seconds
    address = home.settings.addresses.enrolment
    reached = try_door(address, home.consortium.authority, own=None, is_grpc=True, seconds=seconds)
    credentials = grpc.ssl_channel_credentials(to_pem(home.consortium.authority))
    with grpc.secure_channel(address, credentials, options=channel_options()) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError as failed:
            raise error_of(failed) from failed
    yield ok(f"{address} at {reached} serves")


def look_at_consortium_door(place: Examination) -> Iterator[Finding]:
    """Try the door of documents as a member; what the coordinator says of itself is kept for the checks after this one."""
    address = place.home.settings.addresses.consortium

    def call(channel: CoordinatorChannel) -> None:
        place.facts = ConsortiumClient(place.home, channel, place.now).facts()

    return _member_door(place, address, call)


def look_at_aggregator_door(place: Examination) -> Iterator[Finding]:
    """Try the door of ciphertexts as a member: ask for an upload in a session that there is not."""
    address = place.home.settings.addresses.aggregator

    def call(channel: CoordinatorChannel) -> None:
        request = UploadStatusRequest(
            attempt=attempt_of(os.urandom(SESSION_BYTES), 0, 0), header_hash=header_hash(b"")
        )
        try:
            channel.call(lambda made, seconds: AggregatorStub(made).UploadStatus(request, timeout=seconds))
        except WrongSession:
            return  # it knows who asks, and that there is no such session

    return _member_door(place, address, call)


def _member_door(
    place: Examination, address: str, call: Callable[[CoordinatorChannel], None]
) -> Iterator[Finding]:
    home, seconds = place.home, place.door_seconds
    own = home.tls_files
    reached = try_door(address, home.consortium.authority, own=own, is_grpc=True, seconds=seconds)
    made = CoordinatorChannel(
        address,
        tls=TlsSource(own),
        participant=home.name,
        patience=Patience(deadline_seconds=seconds),
        clock=place.now,
    )
    with closing(made) as channel:
        try:
            call(channel)
        except (CertificateRejected, NotAMember) as error:
            yield failure(error, INVITE_AGAIN)
            return
        except CoordinatorUnreachable as error:
            yield failure(error, LOOK_THERE)
            return
    yield ok(f"{address} at {reached} knows this participant")


def look_at_fleet_door(place: Examination) -> Iterator[Finding]:
    """Try the door to Flower's SuperLink as a member: ask for a run that there is not."""
    home, files = place.home, place.home.tls_files
    address, seconds = home.settings.addresses.fleet, place.door_seconds
    reached = try_door(address, home.consortium.authority, own=files, is_grpc=False, seconds=seconds)
    key = load_ssh_private_key(read_private_file(home.flower_key_file), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidValue("flower.key holds no key on an elliptic curve")
    tls = client_tls(certificate=files.certificate, key=files.key, authority=home.consortium.authority)
    with FleetClient(f"https://{address}", tls=tls, node_key=key, outbox_node_id=1) as client:
        try:
            client.bundle_of(0)
        except (FlowerRefused, NodeNotAccepted):
            pass  # the SuperLink itself has answered: it knows no such run, or no node of this number
        except CertificateRejected as error:
            yield failure(error, INVITE_AGAIN)
            return
        except CoordinatorUnreachable as error:
            yield failure(error, LOOK_THERE)
            return
    yield ok(f"{address} at {reached} lets this participant through to the SuperLink")


def look_at_clock(place: Examination) -> Iterator[Finding]:
    """Compare the own clock with the coordinator's."""
    ahead = None if place.facts is None else place.facts.ahead_seconds
    if ahead is None:
        yield skipped("the coordinator does not say what time it is")
    else:
        yield look_at_clock_against(ahead)


def look_at_versions(place: Examination) -> Iterator[Finding]:
    """Compare protocol and packages with the coordinator's."""
    here, there = versions_here(), {} if place.facts is None else place.facts.versions
    release = there.get("hansa", "unknown")
    if there.get(PROTOCOL) != here[PROTOCOL]:
        told = f"the coordinator's hansa {release} speaks another protocol than this hansa {here['hansa']}"
        yield fail(told, install("hansa", release), code="version_differs", subject="hansa")
    else:
        yield ok(f"{here['hansa']} here, {release} there, one protocol", subject="hansa")
    for name in EXACT_PACKAGES:
        own, other = here.get(name, "missing"), there.get(name, "missing")
        if own == other:
            yield ok(f"{own} on both sides", subject=name)
        else:
            told = f"{own} here, {other} at the coordinator"
            yield fail(told, install(name, other), code="version_differs", subject=name)


NETWORK_CHECKS: tuple[Check[Examination], ...] = (
    Check(name="door_enrolment", look=look_at_enrolment_door, needs=("authority",)),
    Check(name="door_consortium", look=look_at_consortium_door, needs=("enrolment", "certificate_days")),
    Check(name="door_aggregator", look=look_at_aggregator_door, needs=("enrolment", "certificate_days")),
    Check(name="door_fleet", look=look_at_fleet_door, needs=("enrolment", "certificate_days")),
    Check(name="clock", look=look_at_clock, needs=("door_consortium",)),
    Check(name="versions", look=look_at_versions, needs=("door_consortium",)),
)

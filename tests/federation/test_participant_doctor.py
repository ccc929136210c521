"""A participant's doctor at the doors of a coordinator: which step fails, and what mends it."""

import http.server
import socket
import ssl
import threading
from datetime import timedelta

import pytest

from hansa.errors import AuthenticationFailed, CoordinatorUnreachable
from hansa.federation.checks import run_checks
from hansa.federation.tls_files import TlsFiles
from hansa.federation.versions import versions_here
from hansa.participant import doctor_network
from hansa.participant.agent_work import AgentWork
from hansa.participant.consortium_client import ConsortiumClient, _ahead
from hansa.participant.coordinator_channel import CoordinatorChannel, Patience
from hansa.participant.doctor_keys import KEY_CHECKS
from hansa.participant.doctor_network import NETWORK_CHECKS
from hansa.participant.door_probe import try_door
from hansa.participant.examination import Examination
from hansa.participant.renewing import begin_renewal
from hansa.secure_agg.certificates import utc_now

pytestmark = pytest.mark.enable_socket
DOORS = ("door_enrolment", "door_consortium", "door_aggregator", "door_fleet")
INVITE = "hansa participant join INVITATION.json --home NEW_HOME"


def examine(place, **changes):
    """Run all checks of keys and network; give the findings by name and subject."""
    results = run_checks(
        (*KEY_CHECKS, *NETWORK_CHECKS), Examination(place.folder, door_seconds=3.0, **changes)
    )
    return {(one.name, one.finding.subject): one.finding for one in results}


def told(findings, name, subject=""):
    finding = findings[name, subject]
    return finding.level, finding.code


def change_settings(place, old, new):
    file = place.folder / "participant.toml"
    file.write_text(file.read_text().replace(old, new))


def test_a_member_of_a_consortium_that_works_is_well(doctor_site):
    findings = examine(doctor_site.enrol())
    assert {one.level for one in findings.values()} == {"ok"}
    assert {name for name, _ in findings} == {check.name for check in (*KEY_CHECKS, *NETWORK_CHECKS)}


def test_who_is_not_enrolled_yet_is_told_how_to_go_on(doctor_site):
    place = doctor_site.ask("bank-1")
    findings = examine(place)
    assert told(findings, "enrolment") == ("fail", "not_a_member")
    assert findings["enrolment", ""].mend == f"hansa participant join --resume --home {place.folder}"
    assert told(findings, "door_enrolment") == ("ok", "")
    assert {findings[name, ""].level for name in DOORS[1:]} == {"skipped"}
    assert told(findings, "revocation_list") == ("warn", "no_revocation_list")


def test_a_revoked_member_is_told_so_at_every_door_and_by_the_list(doctor_site):
    place = doctor_site.enrol()
    doctor_site.revoke("bank-1")
    findings = examine(place)
    for name in DOORS[1:]:
        assert findings[name, ""].code in {"certificate_rejected", "not_a_member"}, name
        assert (findings[name, ""].level, findings[name, ""].mend) == ("fail", INVITE)
    assert told(findings, "door_enrolment") == ("ok", "")
    assert told(findings, "clock")[0] == "skipped"
    place.take_revocations(doctor_site.office.revocations.current(), utc_now())
    assert told(examine(place), "revocation_list", "own") == ("fail", "participant_revoked")


@pytest.mark.parametrize("door", ["fleet", "aggregator", "consortium", "enrolment"])
def test_a_door_where_nobody_listens_is_named(doctor_site, door):
    place = doctor_site.enrol()
    address = getattr(place.settings.addresses, door)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        port = taken.getsockname()[1]
        change_settings(place, f'{door} = "{address}"', f'{door} = "127.0.0.1:{port}"')
        findings = examine(place)
    assert told(findings, f"door_{door}") == ("fail", "coordinator_unreachable")
    assert "refuses the connection" in findings[f"door_{door}", ""].cause
    assert findings[f"door_{door}", ""].mend == f"nc -vz -w 5 127.0.0.1 {port}"
    others = set(DOORS) - {f"door_{door}"}
    assert {findings[name, ""].level for name in others} == {"ok"}


@pytest.fixture
def certified(doctor_site):
    return doctor_site.enrol()


def knock(place, address, **changes):
    usual = {"own": None, "is_grpc": False, "seconds": 0.5}
    return try_door(address, place.consortium.authority, **{**usual, **changes})


def test_a_name_that_does_not_resolve_is_named(certified, monkeypatch):
    def no_name(*_arguments, **_changes):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    with pytest.raises(CoordinatorUnreachable, match="does not resolve") as caught:
        knock(certified, "coordinator.invalid:9443")
    assert caught.value.hint == "getent hosts coordinator.invalid"


def test_a_connection_that_nobody_takes_is_named(certified, monkeypatch):
    def no_answer(*_arguments):
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", no_answer)
    with pytest.raises(CoordinatorUnreachable, match=r"within 0\.5 s: a firewall"):
        knock(certified, "127.0.0.1:9443")


def test_who_takes_the_connection_and_says_nothing_is_named(certified):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(CoordinatorUnreachable, match="says nothing"):
            knock(certified, address)


def test_who_speaks_no_tls_is_named(certified, doctor_site):
    address = f"127.0.0.1:{doctor_site.superlink.server_address[1]}"
    with pytest.raises((AuthenticationFailed, CoordinatorUnreachable)) as caught:
        knock(certified, address)
    assert "TLS" in caught.value.message or "handshake" in caught.value.message
    assert caught.value.hint.startswith("openssl s_client")


def test_a_coordinator_of_another_authority_is_named(certified, doctor_site, federated):
    other = federated.House().authority.certificate
    address = certified.settings.addresses.consortium
    with pytest.raises(AuthenticationFailed, match="another authority"):
        try_door(address, other, own=None, is_grpc=True, seconds=2.0)


def test_a_certificate_for_another_name_is_named(certified):
    port = certified.settings.addresses.consortium.rpartition(":")[2]
    with pytest.raises(AuthenticationFailed, match="not for 'localhost'") as caught:
        knock(certified, f"localhost:{port}", is_grpc=True, seconds=2.0)
    assert caught.value.hint == "hansa consortium renew --address localhost"


def test_a_certificate_of_the_coordinator_that_has_ended_is_named(doctor_site, certified, tmp_path):
    from hansa.federation.tls_authority import issue_server_certificate, request_tls_certificate, to_pem

    key, now = doctor_site.home.tls_files.key, utc_now()
    ended = issue_server_certificate(
        doctor_site.authority,
        request_tls_certificate(key.read_bytes(), "coordinator"),
        name="coordinator",
        hosts=("127.0.0.1",),
        not_before=now - timedelta(minutes=30),
        not_after=now - timedelta(minutes=10),
    )
    (tmp_path / "ended.crt").write_bytes(to_pem(ended))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ended.crt", key)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(AuthenticationFailed, match="has ended") as caught:
            knock(certified, f"127.0.0.1:{server.server_address[1]}", seconds=2.0)
        assert caught.value.hint.startswith("timedatectl")
    finally:
        server.shutdown()
        server.server_close()


def test_a_superlink_that_is_down_is_told_from_a_door_that_is_closed(doctor_site):
    place = doctor_site.enrol()
    doctor_site.superlink.shutdown()
    doctor_site.superlink.server_close()
    findings = examine(place)
    assert told(findings, "door_fleet") == ("fail", "coordinator_unreachable")
    assert "SuperLink is being restarted" in findings["door_fleet", ""].cause
    assert findings["door_fleet", ""].mend == doctor_network.LOOK_THERE


def test_a_flower_key_that_is_not_the_enrolments_is_named(doctor_site):
    place, other = doctor_site.enrol(), doctor_site.enrol("bank-2")
    place.flower_key_file.write_bytes(other.flower_key_file.read_bytes())
    findings = examine(place)
    assert told(findings, "enrolment") == ("fail", "document_rejected")
    assert findings["enrolment", ""].mend.startswith("cp BACKUP/enrolments ")


@pytest.mark.parametrize(("ahead", "level"), [(0, "ok"), (90, "warn"), (-90, "warn"), (400, "fail")])
def test_a_clock_that_is_off_is_told(doctor_site, ahead, level):
    doctor_site.ahead = ahead
    findings = examine(doctor_site.enrol())
    assert findings["clock", ""].level == level
    if level != "ok":
        shown = int(findings["clock", ""].cause.split("clock is ")[1].split(" s")[0])
        assert shown == pytest.approx(ahead, abs=3)
        assert findings["clock", ""].mend == "timedatectl set-ntp true"


def test_the_way_there_and_back_is_no_difference_of_clocks():
    began = utc_now().replace(microsecond=900_000)
    ended = began + timedelta(seconds=4)
    text = "%Y-%m-%dT%H:%M:%SZ"
    for seconds in range(5):
        assert _ahead((began + timedelta(seconds=seconds)).strftime(text), began, ended) == 0.0
    assert _ahead((ended + timedelta(seconds=60)).strftime(text), began, ended) == pytest.approx(60, abs=1)
    assert _ahead((began - timedelta(seconds=60)).strftime(text), began, ended) == pytest.approx(-60, abs=1)
    assert _ahead("", began, ended) is None
    assert _ahead("noon", began, ended) is None


def test_a_coordinator_of_other_versions_is_told(doctor_site, monkeypatch):
    place = doctor_site.enrol()
    here = versions_here()
    other = {**here, "tenseal": "0.3.17", "protocol": "f" * 16, "hansa": "9.9.9"}
    monkeypatch.setattr(doctor_network, "versions_here", lambda: other)
    findings = examine(place)
    assert told(findings, "versions", "hansa") == ("fail", "version_differs")
    assert findings["versions", "hansa"].mend == f"pip install 'hansa=={here['hansa']}'"
    assert told(findings, "versions", "tenseal") == ("fail", "version_differs")
    assert findings["versions", "tenseal"].mend == f"pip install 'tenseal=={here['tenseal']}'"
    assert told(findings, "versions", "flwr") == ("ok", "")


def test_an_agent_renews_certificates_that_have_ended(doctor_site):
    """What the doctor says mends them does: the door for those without a certificate takes the request."""
    place = doctor_site.enrol()
    ended = place.enrolment().body.not_after + timedelta(seconds=1)
    findings = examine(place, now=lambda: ended)
    assert told(findings, "certificate_days") == ("fail", "certificate_rejected")
    assert findings["certificate_days", ""].mend == f"hansa participant run --home {place.folder}"
    asked = []
    channel = CoordinatorChannel(
        place.settings.addresses.consortium,
        tls=doctor_network.TlsSource(place.tls_files),
        participant=place.name,
        patience=Patience(deadline_seconds=2.0),
    )
    try:
        client = ConsortiumClient(place, channel)
        client.renew = asked.append
        work = AgentWork(
            place,
            client,
            channel,
            now=lambda: ended,
            report=lambda *_: None,
            note=lambda *_, **__: None,
        )
        answer = work._ask_renewal(begin_renewal(place, utc_now()))
    finally:
        channel.close()
    assert asked == []
    assert answer.body.number == 2


def test_the_own_certificate_is_shown_where_it_is_asked_for(certified):
    files = certified.tls_files
    assert isinstance(files, TlsFiles)
    assert knock(certified, certified.settings.addresses.fleet, own=files, seconds=2.0) == "127.0.0.1"

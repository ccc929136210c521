"""A new TLS key for the coordinator's services: crash-safe, in force without a restart, and the old one revoked."""

import shutil
import socket
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from hansa.coordinator import office as offices
from hansa.coordinator import service_certificates
from hansa.coordinator.founding import FoundingPlan, found_consortium
from hansa.coordinator.grpc_server import GrpcServer
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.issuing import hosts_of
from hansa.coordinator.journal import Journal
from hansa.coordinator.office import open_office, renew_services, settle_services
from hansa.errors import CertificateRejected, KeyFileUnsafe
from hansa.federation.tls_authority import verify_server_certificate
from hansa.federation.tls_files import TlsSource, read_tls
from hansa.secure_agg.certificates import RevocationList, utc_now


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("founded") / "home"
    found_consortium(
        FoundingPlan(name="northern-banks", folder=folder, hosts=("127.0.0.1",), port=9443, author="admin"),
        utc_now(),
    )
    return folder


@pytest.fixture
def home(founded: Path, tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome.open(Path(shutil.copytree(founded, tmp_path / "home")))


def renew(home: CoordinatorHome, *, new_key: bool, **changes: Any) -> None:
    with open_office(home) as office:
        renew_services(office, home.authority(), changes.pop("now", utc_now()), new_key=new_key, **changes)


def settle(home: CoordinatorHome) -> None:
    with open_office(home) as office:
        settle_services(office)
        office.revocations.publish(home.authority())


def is_revoked(home: CoordinatorHome, certificate: bytes) -> bool:
    listed = RevocationList(home.consortium.authority)
    listed.update(home.revocation_list_file.read_bytes(), utc_now())
    try:
        verify_server_certificate(
            certificate, authority=home.consortium.authority, now=utc_now(), revoked=listed
        )
    except CertificateRejected:
        return True
    return False


def test_a_new_key_is_certified_for_the_same_names_and_the_old_certificate_revoked(
    home: CoordinatorHome,
) -> None:
    before = read_tls(home.tls_files)
    renew(home, new_key=True)
    after = read_tls(home.tls_files)
    assert after.key != before.key
    assert hosts_of(after.certificate_der) == hosts_of(before.certificate_der)
    assert is_revoked(home, before.certificate_der)
    assert not is_revoked(home, after.certificate_der)
    assert home.tls_files.key.stat().st_mode & 0o077 == 0
    assert {path.name for path in (home.folder / "tls").iterdir()} == {"server.key", "server.crt", ".lock"}
    with open_office(home) as office:
        assert office.journal.events()[-1].kind == "server_key_renewed"


def test_every_certificate_of_the_old_key_is_revoked_and_none_of_the_new_one(home: CoordinatorHome) -> None:
    old = [read_tls(home.tls_files).certificate_der]
    for _ in range(2):
        renew(home, new_key=False)
        old.append(read_tls(home.tls_files).certificate_der)
    assert not any(is_revoked(home, certificate) for certificate in old)
    renew(home, new_key=True)
    new = [read_tls(home.tls_files).certificate_der]
    renew(home, new_key=False)
    new.append(read_tls(home.tls_files).certificate_der)
    assert all(is_revoked(home, certificate) for certificate in old)
    assert not any(is_revoked(home, certificate) for certificate in new)
    renew(home, new_key=True)
    assert all(is_revoked(home, certificate) for certificate in [*old, *new])
    listed = x509.load_der_x509_crl(home.revocation_list_file.read_bytes())
    assert len(list(listed)) == len(set(old + new))


def test_a_revoked_certificate_that_has_ended_leaves_the_list(home: CoordinatorHome) -> None:
    renew(home, new_key=False, now=utc_now() - timedelta(days=400))
    ended = read_tls(home.tls_files).certificate_der
    renew(home, new_key=True)
    serial = x509.load_der_x509_certificate(ended).serial_number
    listed = x509.load_der_x509_crl(home.revocation_list_file.read_bytes())
    assert serial not in {entry.serial_number for entry in listed}


def acts(monkeypatch: pytest.MonkeyPatch, *, dies_at: int, after: bool) -> list[str]:
    """Let the process die at one of its acts on disk or journal, before or after it."""
    done: list[str] = []

    def dying(place: Any, name: str) -> None:
        original = getattr(place, name)

        def act(*arguments: Any, **options: Any) -> Any:
            done.append(name)
            dies = len(done) == dies_at
            if dies and not after:
                raise Killed
            found = original(*arguments, **options)
            if dies:
                raise Killed
            return found

        monkeypatch.setattr(place, name, act)

    for name in ("make_folder", "write_file", "sync_folder"):
        dying(service_certificates, name)
    dying(offices, "write_file")
    dying(service_certificates.shutil, "rmtree")
    dying(Path, "rename")
    dying(Journal, "put")
    dying(Journal, "compare_and_put")
    return done


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_moment_the_old_pair_or_the_new_one_is_left(
    founded: Path, tmp_path: Path, after: bool
) -> None:
    ends = set()
    for dies_at in range(1, 30):
        home = CoordinatorHome.open(Path(shutil.copytree(founded, tmp_path / f"{dies_at}")))
        old, source = read_tls(home.tls_files), TlsSource(home.tls_files)
        with pytest.MonkeyPatch.context() as patch:
            done = acts(patch, dies_at=dies_at, after=after)
            try:
                renew(home, new_key=True)
            except Killed:
                pass
            else:
                break
        running = source.material()  # of a coordinator that was running all the time
        assert running.certificate_der == old.certificate_der or running.key != old.key, done
        settle(home)
        left = read_tls(home.tls_files)  # which raises where they do not fit together
        is_new = left.key != old.key
        ends.add(is_new)
        assert is_revoked(home, old.certificate_der) == is_new, done
        assert not is_revoked(home, left.certificate_der), done
        assert not (home.folder / "tls" / "next").exists()
        renew(home, new_key=True)
        assert is_revoked(home, left.certificate_der), done
    assert len(done) > 8
    assert ends == {False, True}


@pytest.mark.parametrize("new_key", [False, True])
def test_nobody_but_the_owner_of_the_folder_leaves_files_there_that_the_daemon_cannot_read(
    home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, new_key: bool
) -> None:
    before, authority = read_tls(home.tls_files), home.authority()
    with open_office(home) as office, monkeypatch.context() as patch:
        patch.setattr(offices.os, "geteuid", lambda: (home.folder / "tls").stat().st_uid + 1)
        with pytest.raises(KeyFileUnsafe, match="another user") as caught:
            renew_services(office, authority, utc_now(), new_key=new_key)
    assert "user of the coordinator" in caught.value.hint
    assert read_tls(home.tls_files) == before
    assert {path.name for path in (home.folder / "tls").iterdir()} == {"server.key", "server.crt"}


def test_a_renewal_finishes_what_a_killed_command_has_left(home: CoordinatorHome) -> None:
    old = read_tls(home.tls_files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            renew(home, new_key=True)
    renew(home, new_key=False)
    assert read_tls(home.tls_files).key != old.key
    assert is_revoked(home, old.certificate_der)


def shown(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as connection:
        return connection.getpeercert(binary_form=True) or b""


@pytest.mark.enable_socket
def test_a_service_that_runs_shows_the_new_key_without_a_restart(home: CoordinatorHome) -> None:
    with GrpcServer(host="127.0.0.1", port=0, tls=TlsSource(home.tls_files), ask_clients=False) as server:
        before = shown(server.bound.port)
        assert before == read_tls(home.tls_files).certificate_der
        renew(home, new_key=True)
        after = shown(server.bound.port)
    assert after == read_tls(home.tls_files).certificate_der
    keys = [x509.load_der_x509_certificate(one).public_key() for one in (before, after)]
    assert keys[0] != keys[1]

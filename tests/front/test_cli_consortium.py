"""`hansa consortium` and `hansa participant`, as admins meet them: the way in, and what is wrong by name.

Commands run in this process, through the same `main` as in one of their own; the last test runs some as processes.
"""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from hansa import cli
from hansa.coordinator.enrolment_server import SERVICE_NAME, EnrolmentServicer
from hansa.coordinator.grpc_server import GrpcServer
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.office import open_office
from hansa.federation.documents import Document, read_document
from hansa.federation.enrolment_pb2_grpc import add_EnrolmentServicer_to_server
from hansa.federation.invitations import Invitation
from hansa.federation.tls_files import TlsSource
from hansa.participant.home import ParticipantHome
from hansa.participant.renewing import begin_renewal
from hansa.secure_agg.certificates import utc_now

HANSA = Path(sys.executable).with_name("hansa")
ZEROS = "0" * 64


class Done(NamedTuple):
    stdout: str
    stderr: str


class Desk:
    """A folder with a consortium, and commands run in it."""

    def __init__(self, folder):
        self.folder, self.home = folder, folder / "coordinator"
        self.fingerprint = self.json("consortium", "init", "northern", "--address", "127.0.0.1")[
            "fingerprint"
        ]

    def run(self, *arguments, status=0, home=None):
        side = () if home is None else ("--home", str(home))
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setenv("HANSA_HOME", str(self.home))
            patch.setattr(sys, "argv", ["hansa", *map(str, arguments), *side])
            patch.setattr(sys, "stdin", io.StringIO())
            with pytest.raises(SystemExit) as ended:
                cli.main()
        assert ended.value.code == status, err.getvalue()
        return Done(out.getvalue(), err.getvalue())

    def json(self, *arguments, home=None):
        done = self.run(*arguments, "--json", home=home)
        found = json.loads(done.stdout)
        assert found["schema"].startswith("hansa/")
        return found

    def fails(self, *arguments, status, code, home=None):
        """Run a command that ends in this error, with a hint, and without a word on stdout."""
        done = self.run(*arguments, status=status, home=home)
        error, hint = done.stderr.strip().splitlines()[-2:]
        assert error.startswith("hansa: error: ")
        assert error.endswith(f"[{code}]")
        assert hint.startswith("hansa: hint: ")
        assert done.stdout == ""
        return error, hint

    def invite(self, name="bank-1"):
        self.run("participant", "invite", name)
        return f"{name}.invitation.json"

    def ask(self, name="bank-1"):
        found = self.json(
            "participant",
            "join",
            self.invite(name),
            "--fingerprint",
            self.fingerprint,
            "--offline",
            home=name,
        )
        return found["fingerprint"], found["file"]

    def enrol(self, name="bank-1"):
        fingerprint, file = self.ask(name)
        self.run("participant", "approve", name, "--fingerprint", fingerprint, "--request", file)
        self.run("participant", "join", "--resume", "--enrolment", f"{name}.enrolment.json", home=name)
        return ParticipantHome.open(self.folder / name)


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_the_way_of_a_member_by_files(desk):
    fingerprint, file = desk.ask()
    listed = desk.json("participant", "list")["participants"]
    assert [(one["name"], one["state"], one["waits_for"]) for one in listed] == [
        ("bank-1", "invited", "its request")
    ]
    plan = ("participant", "approve", "bank-1", "--fingerprint", fingerprint, "--request", file)
    assert desk.json(*plan, "--dry-run")["changed"] is False
    assert desk.json("participant", "show", "bank-1")["state"] == "invited"
    approved = desk.json(*plan)
    assert approved["file"] == "bank-1.enrolment.json"
    found = desk.json("participant", "join", "--resume", "--enrolment", approved["file"], home="bank-1")
    assert (found["state"], found["number"]) == ("enrolled", 1)
    shown = desk.json("participant", "show", "bank-1")
    assert shown["days_left"] in (89, 90)
    assert shown["fingerprint"] == fingerprint
    out = desk.run("participant", "join", "--resume", home="bank-1").stdout
    assert "next: hansa participant dataset add" in out
    revoked = desk.json("participant", "revoke", "bank-1", "--reason", "left", "--yes")
    assert revoked["revocation_list"] == 2
    summary = desk.json("consortium", "show")
    assert summary["participants"] == {"invited": 0, "requested": 0, "enrolled": 0, "revoked": 1}
    assert summary["revocation_list"]["number"] == 2


def test_the_way_of_a_member_over_the_network(desk):
    home = CoordinatorHome.open(desk.home)
    office, failures = open_office(home), []
    server = GrpcServer(host="127.0.0.1", port=0, tls=TlsSource(home.tls_files), ask_clients=False)
    servicer = EnrolmentServicer(
        office.registry, office.renewals, authority=lambda: None, report=failures.append
    )
    server.add(SERVICE_NAME, add_EnrolmentServicer_to_server, servicer)
    settings = desk.home / "coordinator.toml"
    settings.write_text(settings.read_text().replace("127.0.0.1:9446", f"127.0.0.1:{server.bound.port}"))
    invitation = desk.invite()
    with server:
        joined = desk.json("participant", "join", invitation, "--fingerprint", desk.fingerprint, home="p")
        assert joined["state"] == "requested"
        desk.fails("participant", "join", "--resume", status=75, code="enrolment_pending", home="p")
        desk.run("participant", "approve", "bank-1", "--fingerprint", joined["fingerprint"])
        found = desk.json("participant", "join", "--resume", "--wait", "30", home="p")
        assert found["state"] == "enrolled"
        place = ParticipantHome.open(desk.folder / "p")
        request = begin_renewal(place, utc_now())
        with pytest.raises(Exception, match="waits for the admin"):
            office.renewals.ask(request, None)
        assert desk.json("participant", "list")["participants"][0]["waits_for"] == "renewal"
        assert desk.json("participant", "renew", "bank-1", "--dry-run")["changed"] is False
        desk.run("participant", "renew", "bank-1")
        assert desk.json("participant", "show", "bank-1")["enrolment"] == 2
    office.journal.close()
    assert failures == []


def test_a_home_of_a_coordinator_is_private_and_made_once(desk):
    for name in ("ca/authority.key", "tls/server.key", "authors/admin.key", "coordinator.toml"):
        assert (desk.home / name).stat().st_mode & 0o777 == 0o600
    assert desk.home.stat().st_mode & 0o777 == 0o700
    before = (desk.home / "ca" / "authority.key").read_bytes()
    desk.fails("consortium", "init", "northern", "--address", "127.0.0.1", status=78, code="home_exists")
    assert (desk.home / "ca" / "authority.key").read_bytes() == before


def test_init_says_what_it_would_make_and_makes_nothing(tmp_path):
    desk = Desk.__new__(Desk)
    desk.folder, desk.home = tmp_path, tmp_path / "c"
    plan = ("consortium", "init", "northern", "--address", "coord.example", "--port", "7000")
    found = desk.json(*plan, "--dry-run")
    assert found["addresses"]["enrolment"] == "coord.example:7003"
    assert not desk.home.exists()
    for wrong, code in (
        (("init", "Northern", "--address", "a.example"), "invalid_value"),
        (("init", "n", "--address", "http://a.example"), "invalid_value"),
        (("init", "n", "--address", "a.example", "--port", "65534"), "invalid_value"),
        (("init", "n", "--address", "a.example", "--author", "a/b"), "invalid_value"),
    ):
        desk.fails("consortium", *wrong, status=78, code=code)
    assert not desk.home.exists()


def test_wrong_fingerprints(desk):
    invitation = desk.invite()
    other = ("participant", "join", invitation, "--fingerprint", ZEROS, "--offline")
    desk.fails(*other, status=4, code="fingerprint_mismatch", home="p")
    desk.fails("participant", "join", invitation, "--offline", status=2, code="usage", home="p")
    short = ("participant", "join", invitation, "--fingerprint", desk.fingerprint[:19], "--offline")
    desk.fails(*short, status=2, code="usage", home="p")
    assert not (desk.folder / "p").exists()
    _, file = desk.ask("bank-2")
    error, _ = desk.fails(
        "participant", "approve", "bank-2", "--fingerprint", ZEROS, "--request", file,
        status=4, code="fingerprint_mismatch",
    )  # fmt: skip
    assert desk.json("participant", "show", "bank-2")["state"] == "invited"
    assert "0000-0000" in error


def test_an_invitation_that_was_used_or_has_ended(desk):
    invitation = desk.invite()
    join = ("participant", "join", invitation, "--fingerprint", desk.fingerprint, "--offline")
    first = desk.json(*join, "--output", "first.json", home="p")
    second = desk.json(*join, "--output", "second.json", home="q")
    approve = ("participant", "approve", "bank-1", "--fingerprint")
    desk.run(*approve, first["fingerprint"], "--request", "first.json")
    desk.fails(*approve, second["fingerprint"], "--request", "second.json", status=4, code="invitation_used")
    desk.fails(*join, status=78, code="home_exists", home="p")
    authority = CoordinatorHome.open(desk.home).authority()
    body = read_document((desk.folder / invitation).read_bytes(), Invitation).body
    old = Document.sign(body.model_copy(update={"expires": utc_now() - timedelta(days=1)}), authority.sign)
    (desk.folder / "old.json").write_bytes(old.encode())
    late = ("participant", "join", "old.json", "--fingerprint", desk.fingerprint, "--offline")
    desk.fails(*late, status=4, code="invitation_expired", home="r")


def test_unknown_participants_and_approving_twice(desk):
    for command in (
        ("show", "bank-9"),
        ("approve", "bank-9", "--fingerprint", ZEROS),
        ("revoke", "bank-9", "--reason", "x", "--yes"),
        ("renew", "bank-9"),
    ):
        desk.fails("participant", *command, status=2, code="participant_unknown")
    desk.invite()
    approve = ("participant", "approve", "bank-1", "--fingerprint", ZEROS)
    desk.fails(*approve, status=75, code="nothing_requested")
    desk.enrol("bank-2")
    fingerprint = desk.json("participant", "show", "bank-2")["fingerprint"]
    again = ("participant", "approve", "bank-2", "--fingerprint", fingerprint)
    desk.fails(*again, status=1, code="already_approved")
    desk.fails("participant", "invite", "bank-2", status=1, code="participant_exists")
    desk.fails("participant", "renew", "bank-2", status=75, code="nothing_requested")
    desk.fails("participant", "invite", "a/b", status=78, code="invalid_value")


def test_a_foreign_request_and_documents_that_were_changed(desk, tmp_path):
    fingerprint, file = desk.ask("bank-1")
    desk.ask("bank-2")
    approve = ("participant", "approve", "bank-2", "--fingerprint", fingerprint, "--request")
    desk.fails(*approve, file, status=4, code="document_rejected")
    (tmp_path / "other").mkdir()
    elsewhere = Desk(tmp_path / "other")
    elsewhere.ask("bank-2")
    foreign = elsewhere.folder / "bank-2.request.json"
    desk.fails(*approve, foreign, status=4, code="request_foreign")
    raw = (desk.folder / "bank-2.request.json").read_text()
    spoilt = desk.folder / "spoilt.json"
    for changed, status, code in (
        (raw.replace('"created":"20', '"created":"21'), 4, "invitation_unknown"),
        (raw.replace(",", ", ", 1), 65, "document_malformed"),
        (raw[:-20], 65, "document_malformed"),
        ("", 65, "document_malformed"),
        (raw.replace("enrolment-request/v1", "enrolment-request/v9"), 65, "document_malformed"),
    ):
        spoilt.write_text(changed)
        desk.fails(*approve, spoilt, status=status, code=code)
    desk.fails(*approve, "absent.json", status=66, code="document_missing")
    invitation = (desk.folder / "bank-1.invitation.json").read_text()
    spoilt.write_text(invitation.replace("127.0.0.1:9446", "127.0.0.9:9446"))
    join = ("participant", "join", spoilt, "--fingerprint", desk.fingerprint, "--offline")
    desk.fails(*join, status=4, code="document_rejected", home="fresh")
    desk.run("participant", "approve", "bank-1", "--fingerprint", fingerprint, "--request", file)
    resume = ("participant", "join", "--resume", "--enrolment", "bank-1.enrolment.json")
    desk.fails(*resume, status=4, code="document_rejected", home="bank-2")


def test_keys_that_others_can_read_are_refused(desk):
    desk.ask("bank-1")
    key = desk.home / "ca" / "authority.key"
    os.chmod(key, 0o644)
    desk.fails("participant", "invite", "bank-3", status=78, code="key_file_unsafe")
    os.chmod(key, 0o600)
    os.chmod(desk.folder / "bank-1" / "flower.key", 0o640)
    resume = ("participant", "join", "--resume", "--enrolment", "x")
    desk.fails(*resume, status=78, code="key_file_unsafe", home="bank-1")


def test_the_key_of_the_authority_may_lie_elsewhere(desk):
    place = desk.enrol("bank-1")
    safe = desk.folder / "safe"
    safe.mkdir()
    (desk.home / "ca" / "authority.key").rename(safe / "authority.key")
    desk.fails("participant", "invite", "bank-2", status=78, code="authority_absent")
    desk.run("participant", "invite", "bank-2", "--authority", safe)
    revoke = ("participant", "revoke", "bank-1", "--reason", "left", "--yes")
    error, hint = desk.fails(*revoke, status=78, code="authority_absent")
    assert "bank-1 is shut out here" in error
    assert "hansa consortium renew" in hint
    assert desk.json("participant", "show", "bank-1")["state"] == "revoked"
    assert desk.json("consortium", "show")["revocation_list"]["number"] == 1
    desk.run("consortium", "renew", "--authority", safe)
    assert desk.json("consortium", "show")["revocation_list"]["number"] == 2
    raw = (desk.home / "ca" / "authority.crl").read_bytes()
    serial = int(place.enrolment().body.identity_serial, 16)
    with pytest.raises(Exception, match="is revoked"):
        place.take_revocations(raw, utc_now()).verify_not_revoked(serial, utc_now())
    other = desk.folder / "other"
    other.mkdir()
    (other / "authority.key").write_bytes(b"k" * 32)
    os.chmod(other / "authority.key", 0o600)
    desk.fails("participant", "invite", "bank-3", "--authority", other, status=4, code="certificate_rejected")


def test_revoking_asks_on_a_terminal_only(desk):
    desk.invite()
    error, hint = desk.fails("participant", "revoke", "bank-1", "--reason", "x", status=2, code="usage")
    assert "revoking bank-1" in error
    assert "--yes" in hint
    assert desk.json("participant", "show", "bank-1")["state"] == "invited"
    dry = desk.json("participant", "revoke", "bank-1", "--reason", "x", "--dry-run")
    assert dry["changed"] is False
    desk.run("participant", "revoke", "bank-1", "--reason", "x", "--yes")
    again = ("participant", "revoke", "bank-1", "--reason", "x", "--yes")
    desk.fails(*again, status=4, code="participant_revoked")


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ('database = "sqlite:////nowhere/at/all/journal.sqlite"', 78, "database_unusable"),
        ('database = "nonsense"', 78, "database_unusable"),
        ('database = "postgresql://user:secret@127.0.0.1:1/x"', 69, "journal_unreachable"),
        ('databse = "sqlite://"', 78, "unknown_key"),
        ("database = 3", 78, "invalid_value"),
        ("[", 78, "settings_syntax"),
    ],
)
def test_settings_that_are_wrong(desk, line, status, code):
    settings = desk.home / "coordinator.toml"
    text = settings.read_text()
    settings.write_text(text.replace("\n\n[addresses]", f"\n{line}\n\n[addresses]"))
    error, _ = desk.fails("participant", "list", status=status, code=code)
    assert "secret" not in error


def test_a_folder_that_is_no_home(desk):
    empty = desk.folder / "empty"
    empty.mkdir()
    desk.fails("consortium", "show", status=66, code="home_missing", home=empty)
    desk.fails("participant", "list", status=66, code="home_missing", home=empty)
    desk.fails("participant", "join", "--resume", status=66, code="home_missing", home=empty)


def test_a_coordinator_that_is_not_there(desk):
    invitation = desk.invite()
    join = ("participant", "join", invitation, "--fingerprint", desk.fingerprint, "--json")
    _, hint = desk.fails(*join, status=69, code="coordinator_unreachable", home="p")
    assert "--resume" in hint
    desk.fails("participant", "join", "--resume", status=69, code="coordinator_unreachable", home="p")


def test_files_are_not_overwritten_and_the_code_is_never_printed(desk):
    done = desk.run("participant", "invite", "bank-1")
    invitation = desk.folder / "bank-1.invitation.json"
    code = json.loads(invitation.read_text())["body"]["code"]
    assert code not in done.stdout + done.stderr
    assert invitation.stat().st_mode & 0o777 == 0o600
    desk.fails("participant", "invite", "bank-1", status=73, code="output_not_writable")
    join = ("participant", "join", invitation.name, "--fingerprint", desk.fingerprint)
    made = desk.run(*join, "--offline", home="p")
    assert code not in made.stdout + made.stderr
    for path in (desk.folder / "p").rglob("*"):
        assert not path.is_file() or code.encode() not in path.read_bytes()


def test_the_services_get_another_key_when_asked_for(desk):
    key = desk.home / "tls" / "server.key"
    old, list_before = key.read_bytes(), desk.json("consortium", "show")["revocation_list"]["number"]
    found = desk.json("consortium", "renew", "--new-key", "--dry-run")
    assert (found["changed"], found["new_key"], key.read_bytes() == old) == (False, True, True)
    assert desk.json("consortium", "renew")["new_key"] is False
    assert key.read_bytes() == old
    done = desk.run("consortium", "renew", "--new-key")
    assert f"those for the old one are revoked, revocation list {list_before + 1}" in done.stdout
    assert key.read_bytes() != old
    assert desk.json("consortium", "show")["revocation_list"]["number"] == list_before + 1
    (desk.home / "ca" / "authority.key").rename(desk.folder / "authority.key")
    kept = key.read_bytes()
    desk.fails("consortium", "renew", "--new-key", status=78, code="authority_absent")
    assert key.read_bytes() == kept
    desk.run("consortium", "renew", "--new-key", "--authority", desk.folder)
    assert key.read_bytes() != kept


def test_authors_are_added_listed_and_revoked(desk):
    added = desk.json("consortium", "author", "add", "alice")
    listed = desk.json("consortium", "author", "list")["authors"]
    assert {one["name"]: one["state"] for one in listed} == {"admin": "author", "alice": "author"}
    assert added["key"] in {one["key"] for one in listed}
    desk.fails("consortium", "author", "add", "a/b", status=78, code="invalid_value")
    bad = desk.folder / "bad.pem"
    bad.write_text("nothing")
    desk.fails("consortium", "author", "add", "bob", "--request", bad, status=2, code="usage")
    done = subprocess.run(
        ["openssl", "req", "-new", "-newkey", "ed25519", "-nodes", "-keyout", "bob.key", "-subj", "/CN=bob", "-out", "bob.pem"],
        cwd=desk.folder,
        capture_output=True,
        check=False,
    )  # fmt: skip
    if done.returncode == 0:  # where openssl is installed
        desk.run("consortium", "author", "add", "bob", "--request", "bob.pem")
        desk.fails(
            "consortium",
            "author",
            "add",
            "eve",
            "--request",
            "bob.pem",
            status=4,
            code="certificate_rejected",
        )
    desk.run("consortium", "author", "revoke", "alice", "--reason", "left", "--yes")
    states = {one["name"]: one["state"] for one in desk.json("consortium", "author", "list")["authors"]}
    assert states["alice"] == "revoked"
    desk.fails("consortium", "author", "revoke", "nobody", "--reason", "x", "--yes", status=2, code="usage")


def test_as_processes_they_end_with_the_same_words_and_statuses(desk):
    desk.ask("bank-1")
    (desk.folder / "spoilt.json").write_text("{}")
    desk.enrol("bank-2")
    approved = desk.json("participant", "show", "bank-2")["fingerprint"]
    join = ("participant", "join", "bank-2.invitation.json", "--fingerprint", desk.fingerprint, "--offline")
    second = desk.json(*join, "--output", "second.json", home="q")["fingerprint"]
    for arguments, status, code in (
        (("participant", "list"), 0, ""),
        (
            ("participant", "approve", "bank-1", "--fingerprint", ZEROS, "--request", "bank-1.request.json"),
            4,
            "fingerprint_mismatch",
        ),
        (
            ("participant", "join", "spoilt.json", "--fingerprint", ZEROS, "--home", "p"),
            65,
            "document_malformed",
        ),
        (("participant", "show", "nobody"), 2, "participant_unknown"),
        (("participant", "approve", "bank-2", "--fingerprint", approved), 1, "already_approved"),
        (
            ("participant", "approve", "bank-2", "--fingerprint", second, "--request", "second.json"),
            4,
            "invitation_used",
        ),
        (("participant", "revoke", "bank-1", "--reason", "x"), 2, "usage"),
        (("participant", "join", "--resume", "--home", "bank-1"), 69, "coordinator_unreachable"),
        (("consortium", "init", "northern", "--address", "127.0.0.1"), 78, "home_exists"),
    ):
        done = subprocess.run(
            [str(HANSA), *arguments],
            cwd=desk.folder,
            env={**os.environ, "HANSA_HOME": str(desk.home)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, done.stderr
        if status:
            error, hint = done.stderr.strip().splitlines()[-2:]
            assert error.startswith("hansa: error: ")
            assert error.endswith(f"[{code}]")
            assert hint.startswith("hansa: hint: ")
            assert done.stdout == ""
        else:
            assert done.stdout.startswith("NAME ")

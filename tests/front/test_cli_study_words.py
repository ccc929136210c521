"""`hansa study` and what people see of studies: nothing that another party wrote acts on a terminal, and nothing is left out."""

import json
from types import SimpleNamespace

import pytest

from hansa import cli, cli_studies
from hansa.cli import run_here
from hansa.cli_asking import printable
from hansa.coordinator.exchange import _answer
from hansa.coordinator.office import open_office
from hansa.errors import ParticipantRefused
from hansa.study import study_of

EVIL = "risk\x1b[2K\r\x9b1A\u202eelif\nOFF        nothing"


def said(*arguments, home, status=0):
    found, out, err = run_here([*arguments, "--home", str(home)])
    assert found == status, err
    return out, err


def test_what_a_terminal_would_act_on_is_spelled_out():
    assert printable("ε 8 Zürich") == "ε 8 Zürich"
    assert printable(EVIL) == "risk\\x1b[2K\\r\\x9b1A\\u202eelif\\nOFF        nothing"


@pytest.fixture
def evil(small):
    """A consortium whose author wrote a purpose for terminals."""
    agreement = small.study.model_dump(by_alias=True, mode="json")
    small.study = study_of({**agreement, "purpose": EVIL})
    proposal = small.propose()
    home = small.members["bank-1"].folder
    small.own_desk(small.members["bank-1"]).propose(proposal)
    return SimpleNamespace(small=small, home=home, proposal=proposal)


@pytest.mark.enable_socket
def test_a_purpose_neither_hides_a_line_nor_adds_one(evil):
    name = evil.small.study.name
    for command, home in (
        (("participant", "study", "show", name), evil.home),
        (("study", "show", name), evil.small.home.folder),
    ):
        out, _ = said(*command, home=home)
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert "OFF        nothing" not in out.splitlines()


@pytest.mark.enable_socket
def test_everything_that_an_approval_agrees_to_is_shown(evil):
    name, study = evil.small.study.name, evil.small.study
    out, _ = said("participant", "study", "show", name, home=evil.home)
    lines = [line.strip() for line in out.splitlines()]
    assert f"privacy.clip_norm = {study.privacy.clip_norm}" in lines
    assert f"training.rounds = {study.training.rounds}" in lines
    assert f'data.columns[0].name = "{study.data.columns[0].name}"' in lines
    out, _ = said("participant", "study", "show", name, "--json", home=evil.home)
    assert study_of(json.loads(out)["agreement"]).id == study.id


@pytest.mark.enable_socket
def test_the_question_before_an_approval_names_what_is_approved(evil, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "n\n"))
    session = evil.proposal.body.session_id.hex()
    body = evil.proposal.body
    _, err = said("study", "approve", session, home=evil.home, status=2)
    for part in (session[:8], body.study_id.hex()[:16], body.base_model.hex()[:16], "epsilon 8"):
        assert part in err


def test_a_code_that_a_member_made_up_is_not_repeated():
    record = {"error": "\x1b]0;owned\x07"}
    reply = SimpleNamespace(
        has_error=lambda: False, content=SimpleNamespace(config_records={"reply": record})
    )
    with pytest.raises(ParticipantRefused, match="bank-1 refused: a code that is none"):
        _answer(reply, "bank-1", frozenset())


# -- other words -------------------------------------------------------------------------------------------------


@pytest.mark.enable_socket
def test_who_stops_watching_hears_that_the_study_goes_on(small, monkeypatch):
    small.propose()

    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_studies.time, "sleep", stopped)
    _, err = said("study", "watch", small.study.name, home=small.home.folder, status=130)
    assert "the study goes on" in err
    assert "removed" not in err


def test_a_stop_of_any_command_does_not_speak_of_keys_that_are_gone(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", stopped)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "keys and state of the run are removed" not in capsys.readouterr().err


@pytest.mark.enable_socket
def test_an_author_that_was_revoked_signs_nothing_also_before_a_list_says_so(small, tmp_path):
    proposal = small.propose()
    home = small.home.folder
    (home / "ca" / "authority.key").rename(tmp_path / "authority.key")
    arguments = ("consortium", "author", "revoke", "admin", "--reason", "left", "--yes")
    _, err = said(*arguments, home=home, status=78)
    assert "hansa consortium renew" in err
    session = proposal.body.session_id.hex()
    _, err = said("study", "start", session, home=home, status=4)
    assert "revoked" in err
    said("consortium", "renew", "--authority", str(tmp_path), home=home)
    with open_office(small.home) as office:
        assert office.revocations.number() == 2


@pytest.mark.enable_socket
def test_an_enrolment_that_cannot_be_written_is_not_issued(small, tmp_path, monkeypatch):
    from hansa.federation.consortium import fingerprint_text
    from hansa.participant.enrolling import begin_enrolment
    from hansa.secure_agg.certificates import utc_now

    with open_office(small.home) as office:
        invitation = office.registry.invite("bank-4", small.home.authority())
        _, request = begin_enrolment(invitation, tmp_path / "bank-4", utc_now())
        office.registry.submit(request)
        fingerprint = fingerprint_text(office.registry.fingerprint(office.registry.members.get("bank-4")))
        output = tmp_path / "bank-4.enrolment.json"
        output.write_text("something of the admin's")
        arguments = (
            "participant",
            "approve",
            "bank-4",
            "--fingerprint",
            fingerprint,
            "--output",
            str(output),
        )
        said(*arguments, home=small.home.folder, status=73)
        assert office.registry.members.get("bank-4").state == "requested"
        assert output.read_text() == "something of the admin's"
        output.unlink()
        said(*arguments, home=small.home.folder)
        assert output.stat().st_size > 100

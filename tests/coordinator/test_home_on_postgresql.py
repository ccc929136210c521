"""A coordinator whose journal is at a server of PostgreSQL: founded, opened again, examined; its password from a file."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hansa.coordinator.doctor import COORDINATOR_CHECKS
from hansa.coordinator.examination import Examination
from hansa.coordinator.founding import FoundingPlan, found_consortium
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.office import maintain, open_office
from hansa.coordinator.settings import journal_url
from hansa.errors import DatabaseUnusable, Error, HomeExists, InvalidValue, KeyFileUnsafe, PasswordFileMissing
from hansa.federation.checks import run_checks
from hansa.participant.enrolling import begin_enrolment, finish_enrolment
from hansa.secure_agg.certificates import utc_now

FILE = "database-password"


def password_of(url: str) -> str:
    return str(sa.make_url(url).password)


def without_password(url: str) -> str:
    return sa.make_url(url)._replace(password=None).render_as_string(hide_password=False)


def plan_of(folder: Path, url: str) -> FoundingPlan:
    folder.mkdir(mode=0o700)
    (folder / FILE).touch(mode=0o600)
    (folder / FILE).write_text(password_of(url) + "\n")
    return FoundingPlan(
        name="northern-banks",
        folder=folder,
        hosts=("127.0.0.1",),
        port=9443,
        author="admin",
        database=without_password(url),
        database_password_file=FILE,
    )


@pytest.fixture
def home(tmp_path: Path, database: str) -> CoordinatorHome:
    return found_consortium(plan_of(tmp_path / "coordinator", database), utc_now())


def finding(home: CoordinatorHome, check: str) -> Any:
    checks = [one for one in COORDINATOR_CHECKS if one.name in ("settings", "database", "journal")]
    with Examination(home.folder) as place:
        return next(
            one.finding for one in run_checks(checks, place) if (one.name, one.finding.subject) == (check, "")
        )


def test_from_the_founding_to_a_member_that_is_there_when_it_is_opened_again(
    home: CoordinatorHome, tmp_path: Path
) -> None:
    with open_office(home) as office:
        assert [author.name for author in office.authors.all()] == ["admin"]
        authority = home.authority()
        place, request = begin_enrolment(
            office.registry.invite("bank-1", authority), tmp_path / "bank-1", utc_now()
        )
        office.registry.submit(request)
        fingerprint = office.registry.fingerprint(office.registry.members.get("bank-1"))
        finish_enrolment(
            place, office.registry.approve("bank-1", fingerprint=fingerprint, authority=authority), utc_now()
        )
        number = office.revocations.number()
    assert not (home.folder / "journal.sqlite").exists()
    again = CoordinatorHome.open(home.folder)
    with open_office(again) as office:
        record = office.registry.members.get("bank-1")
        assert record.state == "enrolled"
        assert record.enrolment_document.encode() == place.enrolment().encode()
        maintain(office, utc_now())
        assert office.revocations.number() == number
        office.registry.revoke("bank-1", "test")
        maintain(office, utc_now())
    with open_office(again) as office:
        assert office.registry.members.get("bank-1").state == "revoked"
        assert office.revocations.number() == (number or 0) + 1
        assert office.revocations.current() == home.revocation_list_file.read_bytes()


def test_a_database_serves_one_consortium(home: CoordinatorHome, database: str, tmp_path: Path) -> None:
    with pytest.raises(HomeExists, match="holds the journal of a consortium already"):
        found_consortium(plan_of(tmp_path / "second", database), utc_now())
    assert not (tmp_path / "second" / "ca").exists()


def test_nothing_is_founded_on_a_database_that_cannot_be_used(tmp_path: Path, database: str) -> None:
    plan = plan_of(tmp_path / "home", database)
    (plan.folder / FILE).write_text("another")
    with pytest.raises(Error) as caught:
        found_consortium(plan, utc_now())
    assert caught.value.code == "journal_unreachable"
    assert [path.name for path in plan.folder.iterdir()] == [FILE]


def test_nothing_is_founded_where_no_tables_can_be_made_and_later_it_is(
    postgresql: Any, tmp_path: Path, database: str
) -> None:
    with postgresql.owner(database) as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS poorer")
        connection.exec_driver_sql("CREATE ROLE poorer LOGIN PASSWORD 'geheim-4711'")
    url = sa.make_url(database).set(username="poorer", password="geheim-4711")
    plan = plan_of(tmp_path / "home", url.render_as_string(hide_password=False))
    with pytest.raises(DatabaseUnusable, match="permission denied"):
        found_consortium(plan, utc_now())
    assert [path.name for path in plan.folder.iterdir()] == [FILE]
    with postgresql.owner(database) as connection:
        connection.exec_driver_sql("CREATE TABLE record (other int)")
    with pytest.raises(DatabaseUnusable, match="already exists"):
        plan_of(tmp_path / "other", database).verify()
    with postgresql.owner(database) as connection:
        connection.exec_driver_sql("DROP TABLE record")
        connection.exec_driver_sql("GRANT CREATE ON SCHEMA public TO poorer")
    plan.verify()
    with postgresql.owner(database) as connection:  # a plan that is verified leaves nothing behind
        assert (
            connection.exec_driver_sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").scalar()
            == 0
        )
    found_consortium(plan, utc_now())
    with postgresql.owner(database) as connection:
        connection.exec_driver_sql("DROP OWNED BY poorer")
        connection.exec_driver_sql("DROP ROLE poorer")


def test_the_settings_hold_no_password_and_the_doctor_is_content(
    home: CoordinatorHome, database: str
) -> None:
    text = (home.folder / "coordinator.toml").read_text()
    assert password_of(database) not in text
    assert f'database_password_file = "{FILE}"' in text
    for check in ("settings", "database", "journal"):
        assert finding(home, check).level == "ok", check
    assert "***" in finding(home, "database").cause


@pytest.mark.parametrize(
    ("mode", "code", "mend"),
    [(0o640, "key_file_unsafe", "chmod 600"), (0, "password_file_missing", "EDITOR")],
)
def test_the_doctor_names_what_is_wrong_with_the_password_file(
    home: CoordinatorHome, mode: int, code: str, mend: str
) -> None:
    if mode:
        (home.folder / FILE).chmod(mode)
    else:
        (home.folder / FILE).unlink()
    found = finding(home, "database")
    assert (found.level, found.code) == ("fail", code)
    assert mend in found.mend


# -- without a server ----------------------------------------------------------------------------------------

URL = "postgresql+psycopg://hansa@db.example/hansa"


def test_the_password_comes_from_its_file_whatever_signs_it_holds(tmp_path: Path) -> None:
    (tmp_path / FILE).touch(mode=0o600)
    (tmp_path / FILE).write_text("a pass:word/with@signs%?#\n")
    assert sa.make_url(journal_url(URL, FILE, tmp_path)).password == "a pass:word/with@signs%?#"
    assert journal_url(URL, None, tmp_path) == URL
    assert journal_url(None, None, tmp_path).endswith("journal.sqlite")


def test_a_password_file_that_is_missing_or_open_is_named(tmp_path: Path) -> None:
    with pytest.raises(PasswordFileMissing, match="cannot be read") as caught:
        journal_url(URL, FILE, tmp_path)
    assert "database_password_file" in caught.value.hint
    (tmp_path / FILE).write_text("secret")
    (tmp_path / FILE).chmod(0o644)
    with pytest.raises(KeyFileUnsafe, match="mode 0644"):
        journal_url(URL, FILE, tmp_path)


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("postgresql://hansa:geheim@db.example/hansa", InvalidValue, "holds a password itself"),
        ("postgresql://hansa@db.example/hansa?password=geheim", InvalidValue, "holds a password itself"),
        ("sqlite:///journal.sqlite", InvalidValue, "names no server"),
        (None, InvalidValue, "names no server"),
        ("geheim", DatabaseUnusable, "is not one"),
    ],
)
def test_a_password_file_goes_with_a_server_and_no_other_password(
    tmp_path: Path, url: str | None, kind: type[Error], words: str
) -> None:
    (tmp_path / FILE).touch(mode=0o600)
    (tmp_path / FILE).write_text("secret")
    with pytest.raises(kind, match=words) as caught:
        journal_url(url, FILE, tmp_path)
    assert "geheim" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    "url", ["postgresql://hansa:geheim@db.example/hansa", "sqlite:///x.sqlite", "geheim"]
)
def test_no_consortium_is_founded_with_a_url_that_is_none_for_it(tmp_path: Path, url: str) -> None:
    plan = FoundingPlan(
        name="n", folder=tmp_path / "home", hosts=("127.0.0.1",), port=9443, author="admin", database=url
    )
    with pytest.raises((InvalidValue, DatabaseUnusable)) as caught:
        found_consortium(plan, utc_now())
    assert "geheim" not in str(caught.value) + caught.value.hint
    assert not plan.folder.exists()

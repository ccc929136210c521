"""The page and the JSON: the same numbers, nothing loaded, everything escaped, the same bytes."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hansa.reports.gather import gather
from hansa.reports.page import at, report_html, report_json
from hansa.reports.privacy_report import PrivacyReport
from hansa.reports.written import left_text, write, written

VOID = {"meta", "br", "link", "img", "hr", "input", "use", "path", "rect", "line"}
NASTY = "<script>alert('é & \"x\"')</script>"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.numbers: list[tuple[str, str, str]] = []  # place, value, text
        self.text, self.prose = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.addresses.append(str(value))
            self.addresses += re.findall(r"url\(([^)]*)\)", value or "")
        if tag == "data":
            self.numbers.append((str(values["data-at"]), str(values["value"]), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag in ("th", "td", "dd", "dt", "li", "div", "p"):
            self.text += " "
            self.prose += " "

    def handle_data(self, data: str) -> None:
        self.text += data
        if "data" in self.open:
            place, value, text = self.numbers.pop()
            self.numbers.append((place, value, text + data))
        elif not {"svg", "style", "code"} & set(self.open):
            self.prose += data


@pytest.fixture(scope="module")
def html(report: PrivacyReport) -> str:
    return report_html(report)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_in_the_page_is_loaded_from_anywhere(html: str, page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"} & set(
        page.tags
    )
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", html) == []
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_the_page_is_well_formed_and_every_reference_has_one_target(page: Page) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses} <= set(page.ids)


def test_every_number_of_the_page_is_the_one_of_the_json(page: Page, document: dict[str, Any]) -> None:
    assert len(page.numbers) > 200
    for place, value, text in page.numbers:
        held = at(document, place)
        assert value == str(held), place
        key = [part for part in place.split(".") if not part.isdigit()][-1]
        assert text == write(key, held), place


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def test_no_other_number_stands_in_the_page(page: Page, document: dict[str, Any]) -> None:
    texts = " ".join(strings(document))
    loose = {word.strip(".,;:()") for word in page.prose.split() if re.search(r"\d", word)}
    assert sorted(word for word in loose if word not in texts) == ["SHA-256"]


@pytest.mark.parametrize("key", ["epsilon", "prv_low", "prv_high", "rdp", "limit", "left"])
def test_what_every_data_set_spent_stands_in_the_page(page: Page, document: dict[str, Any], key: str) -> None:
    places = {place for place, _, _ in page.numbers}
    for number in range(len(document["data_sets"])):
        assert f"data_sets.{number}.spent.{key}" in places


def test_the_verdict_comes_first(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "Verified. No participant has spent more than ε = 2.41" in text
    assert "NOT VERIFIED" not in text


def test_what_does_not_hold_is_loud(audit_place: Path) -> None:
    path = audit_place / "bank-3" / "ledger-1.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":4', b'"round":5', 1))
    html = report_html(gather(audit_place))
    text = " ".join(Page(html).text.split())
    assert "Not verified. Do not rely on the numbers of this report" in text
    assert "No participant has spent more" not in text
    assert '<div class="alarm" role="alert">' in html
    assert (
        html.count('<span class="state off">NOT VERIFIED</span>') == 4
    )  # ledger and statement, in two tables
    assert "bank-3/ledger-1.jsonl: line 6 of ledger-1.jsonl" in text


def test_a_layer_that_is_off_is_loud(html: str, page: Page) -> None:
    assert "<strong>Switched OFF</strong>" in html
    assert html.count('<span class="state off">OFF</span>') == 1
    text = " ".join(page.text.split())
    assert "Dropout recovery, in merchant-fraud." in text
    assert "1 off" in text


def test_every_text_of_a_report_is_escaped(report: PrivacyReport) -> None:
    def nasty(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: nasty(item) for key, item in value.items()}
        if isinstance(value, list):
            return [nasty(item) for item in value]
        return NASTY if isinstance(value, str) else value

    changed = nasty(report.to_json())

    class Evil:
        def to_json(self) -> dict[str, Any]:
            return changed

    page = Page(report_html(Evil()))  # type: ignore[arg-type]
    assert "script" not in page.tags
    assert page.text.count(NASTY) > 50


@pytest.mark.slow
def test_two_equal_reports_give_the_same_bytes_in_another_process_too(
    report: PrivacyReport, sound_folder: Path, html: str
) -> None:
    code = (
        "import hashlib, sys; from pathlib import Path\n"
        "from hansa.reports.gather import gather\n"
        "from hansa.reports.page import report_html, report_json\n"
        "report = gather(Path(sys.argv[1]))\n"
        "print(hashlib.sha256((report_html(report) + report_json(report)).encode()).hexdigest())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(sound_folder)],
        env={**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Taipei"},
        capture_output=True,
        text=True,
        check=True,
    )
    both = html + report_json(report)
    assert run.stdout.strip() == hashlib.sha256(both.encode()).hexdigest()


def test_the_json_has_sorted_keys_and_ends_with_a_newline(
    report: PrivacyReport, document: dict[str, Any]
) -> None:
    text = report_json(report)
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(document)
    assert json.loads(text) == document


def test_numbers_are_written_on_the_safe_side() -> None:
    assert left_text(1.5999) == "1.59"
    assert left_text(2.0) == "2.00"
    assert write("epsilon", 2.4001) == "2.41"
    assert [write(key, None) for key in ("epsilon", "limit", "left", "rdp", "canaries")] == [
        "unbounded", "no limit", "no limit", "not compared", "not known",
    ]  # fmt: skip
    assert write("entries", 12_345) == "12,345"
    assert written({"a": [{"epsilon": None, "on": True, "name": "x", "steps": 5}]}) == {
        "a": [{"epsilon": "unbounded", "on": True, "name": "x", "steps": "5"}]
    }

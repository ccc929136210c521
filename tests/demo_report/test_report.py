import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hansa.demo.report import report_html, report_json, write_report
from hansa.demo.result import Scores
from hansa.errors import OutputNotWritable
from hansa.reports.files import prepare_directory

VOID = {"meta", "br", "link", "img", "hr", "input", "use", "path", "rect", "line"}
NASTY = "<script>alert('é & \"x\"')</script>"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.addresses.append(value)
            self.addresses += re.findall(r"url\(([^)]*)\)", value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        self.text += " " if tag in ("th", "td") else ""

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(result) -> Page:
    return Page(report_html(result))


def test_nothing_in_the_page_is_loaded_from_anywhere(result, page):
    html = report_html(result)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert page.addresses  # clip paths and markers inside the figures
    assert all(address.startswith("#") for address in page.addresses)
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", html) == []
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_the_page_is_well_formed_and_every_reference_has_one_target(page):
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses} <= set(page.ids)


def test_every_text_of_the_result_is_escaped(make_result):
    result = make_result(
        partition=NASTY,
        partition_notes=(NASTY,),
        absent_steps=(NASTY,),
        caveats=(NASTY,),
        settings_origin=NASTY,
        data_source=NASTY,
        versions={NASTY: NASTY},
        model_hash=NASTY,
        study_id=NASTY,
        protections={NASTY: False},
    )
    spent = dataclasses.replace(
        result.epsilon, unit=NASTY, mechanism=NASTY, per_participant={NASTY: 1.0, "b": 1.0, "c": 1.0}
    )
    result = dataclasses.replace(
        result, epsilon=spent, seconds=dataclasses.replace(result.seconds, by_step={NASTY: 1.0})
    )
    page = Page(report_html(result))
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 13


def test_the_headline_numbers_are_those_of_the_json(result, page):
    text = " ".join(page.text.split())
    for expected in ("+12.3 %", "ε = 7.98 of 8", "0.61 bytes", "99.4 kB a bank and round", "takes 652 kB"):
        assert expected in text
    document = json.loads(report_json(result))
    assert document["gain"]["joint_vs_local_only"] == pytest.approx(0.1225, abs=1e-4)
    assert document["epsilon"]["max"] == 7.98


def test_a_layer_that_is_off_is_loud(make_result):
    everything = make_result(protections={"homomorphic_encryption": True, "signatures": True})
    html = report_html(everything)
    assert '<span class="state off">' not in html
    assert 'role="alert"' not in html
    html = report_html(make_result(protections={"homomorphic_encryption": False, "signatures": True}))
    assert html.count('<span class="state off">OFF</span>') == 1
    assert "The coordinator can read the sum of all updates" in html
    assert "Switched OFF in this run: Homomorphic encryption." in html


def test_what_a_run_does_not_show_is_said(page):
    assert "no network" in page.text


def test_arms_that_were_not_run_say_so(make_result):
    page = Page(report_html(make_result(auc=Scores(joint=0.7), own_auc=Scores(joint=0.7))))
    # 8 arms without a score in two columns, the big number, its baseline, and two gains below the table
    assert page.text.count("not run") == 2 * 8 + 4


def test_every_bank_has_a_row_with_its_epsilon(page):
    rows = " ".join(page.text.split())
    assert "bank-1 7.98 8" in rows
    assert "bank-3 6.10 8" in rows


def test_two_equal_results_give_the_same_bytes_in_another_process_too(result):
    code = (
        "import hashlib, importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('made', sys.argv[1])\n"
        "made = importlib.util.module_from_spec(spec); spec.loader.exec_module(made)\n"
        "from hansa.demo.report import report_html, report_json\n"
        "both = report_html(made.RESULT) + report_json(made.RESULT)\n"
        "print(hashlib.sha256(both.encode()).hexdigest())\n"
    )
    conftest = Path(__file__).with_name("conftest.py")
    run = subprocess.run(
        [sys.executable, "-c", code, str(conftest)],
        env={**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Taipei"},
        capture_output=True,
        text=True,
        check=True,
    )
    both = report_html(result) + report_json(result)
    assert run.stdout.strip() == hashlib.sha256(both.encode()).hexdigest()


def test_report_json_has_sorted_keys_and_ends_with_a_newline(result):
    text = report_json(result)
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert json.loads(text) == result.to_json()


def test_both_files_are_written_into_a_new_folder(result, tmp_path):
    html, document = write_report(result, tmp_path / "new" / "folder")
    assert html.read_text(encoding="utf-8") == report_html(result)
    assert json.loads(document.read_text(encoding="utf-8")) == result.to_json()
    assert sorted(path.name for path in html.parent.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_report_whole_and_nothing_else(
    result, tmp_path, monkeypatch, broken
):
    for name in ("report.html", "report.json"):
        (tmp_path / name).write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OutputNotWritable, match="no space left on device"):
        write_report(result, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "report.html": "old",
        "report.json": "old",
    }


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputNotWritable) as caught:
        prepare_directory(file / "below")
    assert caught.value.exit_status == 73
    assert "--output" in caught.value.hint
    prepare_directory(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []

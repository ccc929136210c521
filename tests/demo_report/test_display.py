import io
import subprocess
import sys
from pathlib import Path

import pytest

from hansa.demo.display import LiveDisplay, PlainDisplay, SilentDisplay, make_display, sparkline, summary
from hansa.demo.result import Scores
from hansa.demo.wording import ARMS


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class CountingStream(io.StringIO):
    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


def run_through(display) -> None:
    display.start("three banks", {"data": "UCI", "privacy": "ε ≤ 8"})
    display.phase("[bold]base\x1b[2J", 8)
    for _ in range(8):
        display.advance(1, "fit\x07")
    display.phase("joint training", 2)
    display.advance(0, "train")
    display.round_done(1, 2, None, 3.1, 2.5)
    display.round_done(2, 2, 0.7, 5.2, 2.5)
    display.finish()
    display.finish()


def test_the_first_line_needs_no_slow_import():
    code = (
        "import sys; import hansa.demo.display as d; d.make_display('plain').start('t', {})\n"
        "slow = {'torch', 'matplotlib', 'rich', 'jinja2', 'numpy', 'flwr'} & set(sys.modules)\n"
        "sys.exit(str(slow) if slow else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == "[   0.0 s] t\n"
    assert run.stdout == ""


def test_plain_prints_one_flushed_line_an_event():
    stream, ticks = CountingStream(), iter(range(100))
    run_through(PlainDisplay(stream, clock=lambda: next(ticks)))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "[   1.0 s] three banks",
        "[   2.0 s]   data: UCI",
        "[   3.0 s]   privacy: ε ≤ 8",
        "[   4.0 s] [bold]base?[2J",
        "[   5.0 s] [bold]base?[2J: 2/8",
        "[   6.0 s] [bold]base?[2J: 4/8",
        "[   7.0 s] [bold]base?[2J: 6/8",
        "[   8.0 s] [bold]base?[2J: 8/8",
        "[   9.0 s] joint training",
        "[  10.0 s] round 1/2, epsilon 3.10, 2.50 s, 3 s left",
        "[  11.0 s] round 2/2, AUC 0.700, epsilon 5.20, 2.50 s",
    ]
    assert stream.flushed == len(lines)


@pytest.mark.parametrize("total", [1, 3, 4, 1000])
def test_a_phase_prints_at_most_four_lines_of_progress(total):
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.phase("work", total)
    for _ in range(total):
        display.advance()
    lines = stream.getvalue().splitlines()[1:]
    assert 1 <= len(lines) <= 4
    assert lines[-1].endswith(f"{total}/{total}")


def test_live_shows_facts_bars_scores_and_gives_the_terminal_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    run_through(LiveDisplay(stream))
    text = stream.getvalue()
    for expected in ("three banks", "UCI", "joint training", "8/8", "2/2", "0.700", "5.20"):
        assert expected in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    assert "[bold]base?" in text  # names are neither markup nor control sequences
    assert "\x1b[2J" not in text
    assert "\x07" not in text


def test_live_may_be_finished_before_it_was_started_and_in_the_middle(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    LiveDisplay(Terminal()).finish()
    stream = Terminal()
    display = LiveDisplay(stream)
    display.start("t", {})
    display.phase("work", 10)
    display.advance(3)
    display.finish()
    assert "3/10" in stream.getvalue()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_silent_shows_nothing(capfd):
    run_through(SilentDisplay())
    assert capfd.readouterr() == ("", "")


def test_auto_is_live_on_a_terminal_and_plain_elsewhere(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_display("auto", stream=Terminal()), LiveDisplay)
    assert isinstance(make_display("auto", stream=io.StringIO()), PlainDisplay)
    assert isinstance(make_display("plain", stream=Terminal()), PlainDisplay)
    assert isinstance(make_display("silent"), SilentDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display("auto", stream=Terminal()), PlainDisplay)


def test_sparkline_spans_the_lowest_and_the_highest_bar():
    assert sparkline([0.5, 0.6, 0.7]) == "▁▅█"
    assert sparkline([0.5, 0.5]) == "▄▄"
    assert len(sparkline(list(range(100)), width=24)) == 24


def test_the_summary_has_every_arm_and_layer_and_ends_with_the_next_command(result):
    text = summary(result, [Path("out/report.html"), Path("out/report.json")], "hansa demo bank --compare")
    lines = text.splitlines()
    assert lines[0].split("   ")[0] == "MODEL"
    for arm in ARMS:
        assert sum(line.startswith(f"{arm.name}  ") for line in lines) == 1
    assert sum(line.endswith("   on") for line in lines) == 9
    assert lines[-3:] == ["wrote out/report.html", "wrote out/report.json", "next: hansa demo bank --compare"]
    assert "+12.3" in text
    assert "not run" in text


def test_a_layer_that_is_off_says_so(make_result):
    text = summary(make_result(protections={"homomorphic_encryption": False}), [], "x")
    assert "Homomorphic encryption   OFF\n" in text


def test_columns_are_aligned_without_lines(result):
    block = summary(result, [], "x").split("\n\n")[0].splitlines()
    ends = {line.index(score) + len(score) for line, score in [(block[1], "0.733"), (block[2], "0.653")]}
    assert ends == {block[0].index("AUC TEST SET") + len("AUC TEST SET")}
    assert not set("|+─━│") & set("".join(block))


def test_the_summary_is_ascii_without_control_characters_but_paths_keep_their_letters(make_result):
    result = make_result(
        auc=Scores(joint=0.5, local_only_same_network=0.6), protections={"é\x1b[2J": True, "signatures": True}
    )
    tables, path, _ = summary(result, [Path("é\x1b[2J")], "next").rsplit("\n", 3)[0:3]
    assert tables.isascii()
    assert "-16.7" in tables
    assert "\x1b" not in tables
    assert path == "wrote é?[2J"

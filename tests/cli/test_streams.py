"""Output of `jat-engine` to narrow encodings, closed streams and readers that go away."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jat_engine.cli import main
from jat_engine.cli.tables import interval, mean_std, number
from jat_engine.evaluation import Interval

DEMO = ["demo", "--video", "", "--max_steps", "2", "--num_episodes", "2", "--tasks", "mujoco-reacher"]
COMMANDS = (["tasks", "--domain", "mujoco"], ["tasks", "--json"], ["info"], ["--help"], DEMO)


@pytest.mark.parametrize("command", COMMANDS)
def test_ascii(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert main(command) == 0
    output.seek(0)
    text = output.read()
    assert "\\u" not in text
    assert ("+/-" in text) == (command is DEMO)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_goes_away_ends_nothing_with_an_error(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(command) == 0
    assert "rror" not in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jat-engine: error: ")
    assert "No space left on device" in line


def test_closed_streams_are_not_taken_by_files(tmp_path: Path) -> None:
    code = (
        "import os, sys; from jat_engine.cli import main; assert main(['--version']) == 0\n"
        f"file = open({str(tmp_path / 'results')!r}, 'w'); assert file.fileno() > 2, file.fileno()\n"
        "print('lost'); print('lost', file=sys.stderr); os.write(1, b'lost'); os.write(2, b'lost')\n"
        "file.write('kept'); file.close(); sys.stdout.flush()\n"
    )
    command = f'"{sys.executable}" -c "$0" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", command, code], timeout=120)
    assert done.returncode == 0
    assert (tmp_path / "results").read_text() == "kept"


def test_a_terminal_that_is_dumb_and_narrow_loses_no_text() -> None:
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "20"}
    command = [sys.executable, "-m", "jat_engine.cli", "tasks", "--domain", "metaworld"]
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(leader)
    assert process.returncode == 0
    assert "metaworld-button-press-topdown-wall" in shown.decode()
    assert "…" not in shown.decode()


def test_what_is_not_a_number_is_a_dash() -> None:
    nan = float("nan")
    assert number(nan) == number(float("inf")) == mean_std([]) == mean_std([1.0, nan]) == "-"
    assert interval(Interval(nan, nan, nan)) == interval(None) == "-"
    assert interval(Interval(0.5, 0.25, 1.0)) == "0.500 [0.250, 1.000]"


def test_brackets_and_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from jat_engine.cli.tables import print_table

    print_table("[red]jat :smile:", {"[bold]": ["[nan, nan]"]})
    out = capsys.readouterr().out
    assert "[red]jat :smile:" in out
    assert "[bold]" in out
    assert "[nan, nan]" in out

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmcoal_qmp import Transcript
from vmcoal_qmp.transcript import MASK, masked

pytestmark = pytest.mark.unit


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_one_object_a_line_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "qmp.log"
    transcript = Transcript(path)
    transcript.record("out", {"execute": "x"})
    transcript.record("in", {"return": {"text": "line\nbreak"}})
    transcript.close()
    transcript.record("out", {"execute": "after close"})
    transcript.close()
    transcript.close()
    first, second, third = lines(path)
    assert (first["dir"], first["msg"]) == ("out", {"execute": "x"})
    assert (second["dir"], second["msg"]) == ("in", {"return": {"text": "line\nbreak"}})
    assert third["msg"] == {"execute": "after close"}
    assert first["t"] <= second["t"] <= third["t"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_rotates_once(tmp_path: Path) -> None:
    path = tmp_path / "qmp.log"
    transcript = Transcript(path, limit=1000)
    for number in range(100):
        transcript.record("out", {"n": number})
    transcript.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["qmp.log", "qmp.log.1"]
    assert path.stat().st_size <= 1000
    assert path.with_name("qmp.log.1").stat().st_size <= 1000
    numbers = [line["msg"]["n"] for line in lines(path.with_name("qmp.log.1")) + lines(path)]
    assert numbers == list(range(numbers[0], 100))


def test_the_limit_holds_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "qmp.log"
    for number in range(50):
        transcript = Transcript(path, limit=1000)
        transcript.record("out", {"n": number})
        transcript.close()
    assert path.stat().st_size <= 1000
    assert lines(path)[-1]["msg"] == {"n": 49}


def test_a_huge_message_is_noted_by_its_length(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "qmp.log")
    transcript.record("in", {"return": "x" * 300_000})
    transcript.close()
    [line] = lines(tmp_path / "qmp.log")
    assert line["msg"] == {"bytes": 300_013}


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Let a file grow to 300 bytes only: as on a full disk, the write that crosses it is cut short.

    Only inside the test: what pytest itself prints may go to a file too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "qmp.log"
    transcript = Transcript(path)
    with small_files():
        for number in range(20):
            transcript.record("out", {"n": number})
    assert transcript.drops > 0
    drops = transcript.drops
    kept = 20 - drops
    os.truncate(path, path.read_bytes().rindex(b"\n") + 1)  # room again, and the torn line gone
    os.truncate(path, 100)  # which tears another
    transcript.record("out", {"n": "after"})
    transcript.close()
    text = path.read_text().splitlines()
    assert kept > 1
    assert json.loads(text[0])["msg"] == {"n": 0}
    last = json.loads(text[-1])
    assert (last["msg"], last["dropped"]) == ({"n": "after"}, drops)


def test_a_lost_folder_costs_lines_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "qmp.log"
    transcript = Transcript(path)
    transcript.record("out", {"n": 0})
    assert transcript.drops == 1
    path.parent.mkdir()
    transcript.record("out", {"n": 1})
    transcript.close()
    [line] = lines(path)
    assert (line["msg"], line["dropped"]) == ({"n": 1}, 1)


def test_a_text_that_is_no_unicode_costs_its_line(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "qmp.log")
    transcript.record("in", {"return": "\ud800"})
    transcript.record("in", {"return": "fine"})
    transcript.close()
    [line] = lines(tmp_path / "qmp.log")
    assert (line["msg"], line["dropped"]) == ({"return": "fine"}, 1)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "qmp.log").symlink_to(tmp_path / "target")
    transcript = Transcript(tmp_path / "qmp.log")
    transcript.record("out", {"n": 0})
    assert transcript.drops == 1
    assert (tmp_path / "target").read_text() == "mine"


def test_a_line_torn_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "qmp.log"
    path.write_text('{"t":1,"dir":"out","msg":{"exe')
    transcript = Transcript(path)
    transcript.record("out", {"n": 0})
    transcript.close()
    assert json.loads(path.read_text().splitlines()[1])["msg"] == {"n": 0}


def test_secrets_are_masked() -> None:
    message = {
        "execute": "object-add",
        "arguments": {"qom-type": "secret", "id": "key0", "data": "hunter2", "format": "raw"},
    }
    assert masked(message)["arguments"] == {"qom-type": "secret", "id": "key0", "data": MASK, "format": "raw"}
    deep = {"arguments": {"list": [{"password": "hunter2", "secret": ["a"]}], "data": {"info": 1}}}
    assert masked(deep) == {"arguments": {"list": [{"password": MASK, "secret": MASK}], "data": {"info": 1}}}

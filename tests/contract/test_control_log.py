"""A daemon's log in a file stays bounded, whatever writes to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

DAEMON = """
import logging, os, sys
from pathlib import Path
from vmcoal.control import log
file = Path(sys.argv[1])
logging.basicConfig(handlers=[log.BoundedLog(file, 4096)], level=logging.INFO, format="%(message)s")
for number in range(300):
    logging.info("record %d %s", number, "x" * 40)
    if number % 50 == 0:
        os.write(2, b"not a record\\n")
print("on stdout too", flush=True)
"""


def write(file: Path, out: object) -> None:
    subprocess.run([sys.executable, "-c", DAEMON, str(file)], stdout=out, stderr=out, check=True, timeout=30)  # type: ignore[call-overload]


def test_it_is_turned_over(tmp_path: Path) -> None:
    file = tmp_path / "daemon.log"
    with file.open("ab") as out:
        write(file, out)
    older = tmp_path / "daemon.log.1"
    assert {path.name for path in tmp_path.iterdir()} == {"daemon.log", "daemon.log.1"}
    assert 4096 <= older.stat().st_size < 4096 + 200
    assert file.stat().st_size < 4096 + 200
    lines = (older.read_text() + file.read_text()).splitlines()
    assert lines[-1] == "on stdout too"
    assert "record 299 " in lines[-2]
    numbers = [int(line.split()[1]) for line in lines if line.startswith("record")]
    assert numbers == list(range(numbers[0], 300))


def test_another_stderr_is_left_alone(tmp_path: Path) -> None:
    file, other = tmp_path / "daemon.log", tmp_path / "other"
    file.write_text("mine\n")
    with other.open("ab") as out:
        write(file, out)
    assert file.read_text() == "mine\n"
    assert other.stat().st_size > 4096
    assert len(list(tmp_path.iterdir())) == 2

"""The tests of the C parts, run under sanitizers; those of single functions are in dataplane/tests."""

from __future__ import annotations

import shutil

import pytest

from framework.native import build, run, sanitized_bindir

pytestmark = pytest.mark.contract


def test_c_tests_pass_under_sanitizers() -> None:
    done = run("meson", "test", "-C", sanitized_bindir().parent, "--suite", "dataplane", "--print-errorlogs")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("clang") is None, reason="libFuzzer needs clang: apt-get install clang")
def test_a_short_run_of_the_fuzzers() -> None:
    folder = build("fuzz", "-Dfuzz=true")
    done = run("meson", "test", "-C", folder, "holder-request-libfuzzer", "pager-order-libfuzzer", "--print-errorlogs")
    assert done.returncode == 0, done.stdout + done.stderr

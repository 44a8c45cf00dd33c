"""What every test gets: its own folders, evidence kept when it fails, and a look that nothing survived it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from framework import evidence
from framework.leaks import Surroundings

# No test asserts a time, and a busy machine makes any example slow.
settings.register_profile("vmcoal", deadline=None)
settings.load_profile("vmcoal")

TIERS = ("unit", "contract", "guest", "lab", "root", "soak")
_outcomes: dict[str, int] = dict.fromkeys(TIERS, 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier-report", help="write a JSON file: tier → number of tests that passed or failed")
    parser.addoption("--lab-flavor", default="12", help="Debian's release in the lab's hosts: 12 or 13")
    parser.addoption(
        "--retries", type=int, default=0, help="run a test of real programs again that failed; the report names both"
    )
    parser.addoption("--regenerate", action="store_true", help="write golden files anew instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tiers = [tier for tier in TIERS if item.get_closest_marker(tier)]
        if not tiers:
            raise pytest.UsageError(f"{item.nodeid} carries no tier marker, one of {', '.join(TIERS)}")
        if "root" in tiers and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: run the tests as root or with sudo"))
        if {"contract", "guest", "lab"} & set(tiers) and shutil.which("qemu-system-x86_64") is None:
            item.add_marker(pytest.mark.skip(reason="no qemu-system-x86_64: run tools/setup"))
        if "unit" not in tiers and "soak" not in tiers:
            item.add_marker(pytest.mark.flaky(reruns=item.config.getoption("--retries")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:
        evidence.failed.add(item.nodeid)
        evidence.failures += 1
    elif report.when == "call":
        evidence.failed.discard(item.nodeid)  # a second try: what the first one left is kept, and this one needs none
    if report.when == "call" and not report.skipped:
        for tier in TIERS:
            _outcomes[tier] += item.get_closest_marker(tier) is not None
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"first try of {report.nodeid}: {report.when}", sep="_")
        terminalreporter.line("\n".join(report.longreprtext.splitlines()[-60:]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--tier-report")
    if path:
        Path(path).write_text(json.dumps(_outcomes))


@pytest.fixture(autouse=True)
def surroundings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the test its own XDG folders, keep them if it fails, and fail it if anything it started survives.

    The image cache is the user's own: images are made by content and take a minute to build.
    """
    # Short, because a socket's path must fit 108 bytes.
    home = Path(tempfile.mkdtemp(prefix="vc-"))
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    for variable, folder in (("XDG_STATE_HOME", "s"), ("XDG_RUNTIME_DIR", "r"), ("XDG_CONFIG_HOME", "c")):
        (home / folder).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(home / folder))
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("VMCOAL_TEST", home.name)
    shm = Path("/dev/shm") / home.name
    monkeypatch.setenv("VMCOAL_SHM_DIR", str(shm))
    before = Surroundings.look(home, shm)
    yield home
    survivors = before.survivors()
    failed = request.node.nodeid in evidence.failed
    if failed or survivors:
        kept = evidence.keep(request.node.name, home)
        request.node.add_report_section("teardown", "evidence", f"kept in {kept}")
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(shm, ignore_errors=True)
    if survivors:
        pytest.fail("survived the test: " + "; ".join(survivors))

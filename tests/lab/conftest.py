"""The lab that all tests here share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from framework import evidence
from framework.labs import Lab, folders


@pytest.fixture(scope="session")
def one_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with folders(request) as home:
        made = Lab(home, request.config.getoption("--lab-flavor"))
        made.up()
        yield made


@pytest.fixture(autouse=True)
def where(request: pytest.FixtureRequest) -> None:
    """Tell tools/lab-report what a test of one host ran on."""
    if "machine" in request.fixturenames:
        machine = request.getfixturevalue("machine")
        request.node.user_properties.append(("where", machine.host.where()))


@pytest.fixture
def lab(one_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give the lab, as if it was new, and fail a test that leaves anything in it."""
    request.node.user_properties.append(("where", one_lab.ground))  # for tools/lab-report
    yield one_lab
    failed = request.node.nodeid in evidence.failed
    left = [] if failed else one_lab.left()
    if failed or left:
        kept = evidence.keep(request.node.name, one_lab.scene.home)
        one_lab.keep_evidence(kept)
        request.node.add_report_section("teardown", "evidence", f"kept in {kept}")
        if not request.session.shouldfail:  # with -x no test follows
            one_lab.reset()
    assert not left, "left behind: " + "; ".join(left)

"""A guest on paged memory with every C part but the preload library under AddressSanitizer and UBSan."""

from __future__ import annotations

import pytest

from framework.held_memory import Holding
from framework.native import sanitized_bindir
from framework.path import Scene, kill, needs_pager, scene, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def complaints(made: Scene) -> str:
    return "\n".join(path.read_text(errors="replace") for path in made.home.glob("sanitizer.*"))


def test_a_guest_on_a_sanitized_data_plane(request: pytest.FixtureRequest) -> None:
    needs_pager()
    with scene(request) as made:
        options = f"log_path={made.home}/sanitizer:log_exe_name=1"
        made.env |= {
            "VMCOAL_BINDIR": str(sanitized_bindir()),
            "ASAN_OPTIONS": options,
            "UBSAN_OPTIONS": f"{options}:print_stacktrace=1",
        }
        made.lend("attic")
        made.boot("web", "--memory-engine", "pager")
        for style in ("--dimm", "--granular"):
            result = made.attach("--memory", "256M", "--cache", "16M", style)
            program = Holding(made, result.attachment.node, 64)
            for _ in range(3):
                program.ask("write")
                before = made.pid("vmcoal-pager")
                kill(before)
                until(lambda: made.pids("vmcoal-pager") not in ([], [before]), "another pager")  # noqa: B023
                assert program.line() == "written"
                server = made.pid("nbdkit", f"exportname={result.attachment.memory[0].lease}")
                program.ask()
                kill(server)
                assert program.line() == "0"
            program.end()
            if style == "--granular":
                made.detach("--memory", "130M")
            made.detach()
            assert complaints(made) == ""
        made.run("shutdown", "web", "--deadline", "60s")
        until(lambda: not made.pids("vmcoal-pager"), "the end of the pager")
        assert complaints(made) == ""

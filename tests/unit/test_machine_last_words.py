"""Why QEMU ended, out of what it wrote."""

from __future__ import annotations

import pytest

from vmcoal.machine.launch import last_words

pytestmark = pytest.mark.unit

_WARNING = (
    "2026-11-22T19:49:55.865800Z qemu-system-x86_64: -accel kvm: warning: Number of hotpluggable cpus requested (20) "
    "exceeds the recommended cpus supported by KVM (2)\n"
)


def test_a_warning_is_no_reason() -> None:
    assert last_words(_WARNING) == ("it said nothing", None)
    said = _WARNING + "2026-11-22T19:49:56.1Z qemu-system-x86_64: Could not set up host forwarding rule 'tcp::1-:22'\n"
    reason, hint = last_words(said)
    assert reason.startswith("Could not set up host forwarding rule")
    assert hint is not None
    assert "--ssh-port" in hint
    reason, hint = last_words(_WARNING + "qemu-system-x86_64: -display vnc=x: address resolution failed\n")
    assert hint is not None
    assert "--display" in hint


def test_kvm_is_named_where_it_is_the_reason() -> None:
    reason, hint = last_words("qemu-system-x86_64: failed to initialize kvm: Permission denied\n")
    assert reason == "failed to initialize kvm: Permission denied"
    assert hint is not None
    assert "--accel tcg" in hint

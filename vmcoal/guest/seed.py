"""The NoCloud seed: a small ISO that has cloud-init bring the agent into the user's own system at its first boot.

A seed carries an instance-id. cloud-init runs its first-boot work, new ssh host keys included, whenever it meets an
instance-id it does not know; so a seed belongs to images that never booted (`should_seed`). Format: cloud-init's
NoCloud datasource, an ISO 9660 volume labelled ``cidata`` with ``meta-data`` and ``user-data``.
"""

from __future__ import annotations

import base64
import gzip
import json
import tempfile
from pathlib import Path

from vmcoal.errors import ExecutionError
from vmcoal.guest.images import agent_source, agent_unit
from vmcoal.guest.packages import run_tool
from vmcoal.guest.store import Store

AGENT_PLACE = "/usr/local/sbin/vmcoal-agent"
"""Where the agent is installed in a guest; its unit starts it from there."""

UNIT_PLACE = "/etc/systemd/system/vmcoal-agent.service"


def meta_data(*, name: str, identity: str) -> str:
    """Return ``meta-data``: ``identity`` is the instance-id, ``name`` the hostname. JSON, which is YAML too."""
    return json.dumps({"instance-id": identity, "local-hostname": name}, indent=1) + "\n"


def user_data(*, ssh_key: str = "") -> str:
    """Return ``user-data``: what brings the agent, and ``ssh_key`` (one public key line) for root and the image's
    default user.

    The agent comes by a boothook, which cloud-init runs long before its other work and at every boot, so that a seed of
    a newer vmcoal brings the newer agent.
    """
    parts = [{"type": "text/cloud-boothook", "content": _boothook()}]
    if key := ssh_key.strip():
        if "\n" in key:
            raise ValueError("one public key is one line")
        config = {
            "disable_root": False,
            "ssh_authorized_keys": [key],
            "users": ["default", {"name": "root", "ssh_authorized_keys": [key]}],
        }
        parts.append({"type": "text/cloud-config", "content": json.dumps(config, indent=1)})
    return "#cloud-config-archive\n" + json.dumps(parts, indent=1) + "\n"


def _boothook() -> str:
    files = ((AGENT_PLACE, "0755", agent_source()), (UNIT_PLACE, "0644", agent_unit()))
    lines = ["#!/bin/sh", "# Installs the vmcoal agent, or brings it up to date.", "changed="]
    for place, mode, source in files:
        packed = base64.b64encode(gzip.compress(source.read_bytes(), 9, mtime=0)).decode()
        lines += [
            f"base64 -d <<'END' | gunzip >{place}.new",
            *(packed[at : at + 120] for at in range(0, len(packed), 120)),
            "END",
            f"if cmp -s {place}.new {place}; then rm {place}.new; else",
            f"    chmod {mode} {place}.new && mv {place}.new {place} && changed=1",
            "fi",
        ]
    unit = Path(UNIT_PLACE).name
    lines += [
        '[ -n "$changed" ] || exit 0',
        f"systemctl --no-reload enable {unit}",
        "systemctl daemon-reload",
        f"systemctl restart --no-block {unit}",
    ]
    return "\n".join(lines) + "\n"


def make_seed(path: Path, *, name: str, identity: str, ssh_key: str = "") -> Path:
    """Write the seed to ``path`` (mode 0600, replaced at once) and return it.

    ``name`` the hostname; ``identity`` the VM's uuid; ``ssh_key`` a public key line. Raises `PrerequisiteError` without
    xorriso, `ExecutionError` where the file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".seed-", dir=path.parent) as work:
            files = Path(work, "files")
            files.mkdir()
            (files / "meta-data").write_text(meta_data(name=name, identity=identity))
            (files / "user-data").write_text(user_data(ssh_key=ssh_key))
            made = Path(work, "seed.iso")
            run_tool(
                ["xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", str(made), str(files)],
                deadline=60,
                what="to make the cloud-init seed",
                package="xorriso",
            )
            made.chmod(0o600)
            made.replace(path)
    except OSError as error:
        raise ExecutionError(
            f"the cloud-init seed {path} cannot be written: {error.strerror}", hint=f"check {path.parent}"
        ) from error
    return path


def should_seed(image: Path, *, cache: Path | None = None) -> tuple[bool, str]:
    """Return whether a VM from ``image`` gets a seed unless the user says otherwise, and why, for people.

    Only an image that vmcoal built is known never to have booted, since VMs write to overlays.
    """
    owner = Store(cache).owner(image)
    if owner is not None:
        return True, f"vmcoal built this {owner.kind} image, and it never booted"
    return False, (
        "cloud-init would treat a system that booted before as a new one (new ssh host keys); "
        "give --seed for a fresh cloud image, or install the agent in the guest"
    )

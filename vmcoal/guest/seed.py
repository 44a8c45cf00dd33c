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
    """Return ``user-data``: the agent with its unit, and ``ssh_key`` (one public key line) for root and the image's
    default user."""
    config: dict[str, object] = {
        "write_files": [
            _file(AGENT_PLACE, "0755", agent_source().read_bytes()),
            _file(UNIT_PLACE, "0644", agent_unit().read_bytes()),
        ],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--now", "--no-block", Path(UNIT_PLACE).name],
        ],
    }
    if key := ssh_key.strip():
        if "\n" in key:
            raise ValueError("one public key is one line")
        config["disable_root"] = False
        config["ssh_authorized_keys"] = [key]
        config["users"] = ["default", {"name": "root", "ssh_authorized_keys": [key]}]
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"


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


def _file(place: str, mode: str, data: bytes) -> dict[str, str]:
    packed = base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
    return {"path": place, "permissions": mode, "owner": "root:root", "encoding": "gz+b64", "content": packed}

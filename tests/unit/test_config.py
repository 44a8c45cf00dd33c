"""The user's config file: defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.command import ROOT, vmcoal
from vmcoal import layout
from vmcoal.cli.config import Config, load_config
from vmcoal.errors import UsageError
from vmcoal.machine import spec
from vmcoal.model.attachment import AttachRequest

pytestmark = pytest.mark.unit


def write(text: str) -> Path:
    path = layout.config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_no_file_is_the_built_in_defaults() -> None:
    assert load_config() == Config()


def test_the_shipped_file_is_the_built_in_defaults() -> None:
    shipped = ROOT / "configs" / "config.toml"
    assert load_config(shipped) == Config()
    for line in shipped.read_text().splitlines():
        assert line.startswith(("#", "[")) or not line or "  # " in line, f"without a comment: {line}"


def test_the_shipped_file_has_every_key() -> None:
    text = (ROOT / "configs" / "config.toml").read_text()
    for section in Config.__struct_fields__:
        assert f"\n[{section}]" in text
        for key in type(getattr(Config(), section)).__struct_fields__:
            assert f"\n{key} = " in text, f"{section}.{key}"


def test_the_defaults_are_those_of_the_machine() -> None:
    boot = Config().boot
    assert (boot.cpus, boot.memory_bytes, boot.far_nodes, boot.far_cpus, boot.far_memory_bytes) == (
        spec.CPUS,
        spec.MEMORY,
        spec.FAR_NODES,
        spec.FAR_CPUS,
        spec.FAR_MEMORY,
    )
    attach = Config().attach
    assert AttachRequest().engine == attach.engine
    assert AttachRequest().deadline == attach.deadline_seconds


def test_values_are_taken() -> None:
    write('[boot]\nmemory = "2G"\naccel = "tcg"\n[attach]\ngranular = true\n')
    config = load_config()
    assert config.boot.memory_bytes == 2 << 30
    assert config.boot.cpus == Config().boot.cpus
    assert config.attach.granular


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[boot]\nmemroy = '1G'", "unknown key boot.memroy", "did you mean boot.memory?"),
        ("[bot]\n", "unknown key bot", "did you mean boot?"),
        ("cpus = 2", "unknown key cpus", "known are boot, lend, attach"),
        ("[lend]\nzzz = 1", "unknown key lend.zzz", "known are lend.cpus"),
        ("boot = 3", "boot: Expected `object`", ""),
        ("[boot]\ncpus = '2'", "boot.cpus: Expected `int`, got `str`", ""),
        ("[boot]\ncpus = 0", "boot.cpus: 0 is not a count", "give a number from 1"),
        ("[boot]\nmemory = 'much'", "boot.memory: 'much' is not a size", "write it as"),
        ("[boot]\ndeadline = 'soon'", "boot.deadline: 'soon' is not a duration", "write it as"),
        ("[boot]\naccel = 'hvf'", "boot.accel: 'hvf' is none of auto, kvm, tcg", ""),
        ("[attach]\nengine = 'warp'", "attach.engine: 'warp' is none of local, far", ""),
        ("[lend]\nname = 'NO'", "lend.name: 'NO' cannot be a lender name", ""),
        ("[boot\n", "is not TOML", ""),
    ],
)
def test_what_is_refused(text: str, said: str, hint: str) -> None:
    path = write(text)
    with pytest.raises(UsageError) as caught:
        load_config()
    assert str(path) in caught.value.message
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")


def test_not_text() -> None:
    layout.config_file().parent.mkdir(parents=True)
    layout.config_file().write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot read"):
        load_config()


def test_a_command_tells_it() -> None:
    write("[boot]\nmemroy = '1G'")
    done = vmcoal("boot", "--dry-run")
    assert done.code == 2
    assert "config.toml has an unknown key boot.memroy" in done.err

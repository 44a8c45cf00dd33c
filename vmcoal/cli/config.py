"""The user's defaults: ``config.toml`` in `vmcoal.layout.config_home`, every key optional, every unknown key refused.

configs/config.toml lists each key with its built-in default.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from vmcoal import layout
from vmcoal.errors import UsageError, VmcoalError
from vmcoal.model.engine import MemoryEngineName
from vmcoal.model.machine import Engine
from vmcoal.model.units import parse_duration, parse_size


class BootDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """``[boot]``. Sizes and durations as people write them; the properties give bytes and seconds."""

    cpus: int = 2
    memory: str = "1G"
    far_nodes: int = 4
    far_cpus: int = 4
    far_memory: str = "8G"
    gpu_window: str = "512M"
    net: str = "user"
    display: str = "none"
    firmware: str = "bios"
    accel: str = "auto"
    memory_engine: str = "auto"
    deadline: str = "5m"

    @property
    def memory_bytes(self) -> int:
        """Return the near node's memory in bytes."""
        return parse_size(self.memory)

    @property
    def far_memory_bytes(self) -> int:
        """Return each far node's headroom in bytes."""
        return parse_size(self.far_memory)

    @property
    def gpu_window_bytes(self) -> int:
        """Return the 64-bit window of each far node's PCI ports in bytes."""
        return parse_size(self.gpu_window)

    @property
    def deadline_seconds(self) -> float:
        """Return how long a boot may take, in seconds."""
        return parse_duration(self.deadline)


class LendDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """``[lend]``. ``cpus`` 0, ``memory`` and ``gpu`` empty: one of them must be given. ``name`` empty: from the host's
    name."""

    cpus: int = 0
    memory: str = ""
    gpu: str = ""
    listen: str = ""
    name: str = ""

    @property
    def memory_bytes(self) -> int:
        """Return the memory to lend in bytes, 0 where none is configured."""
        return parse_size(self.memory) if self.memory else 0


class AttachDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """``[attach]``."""

    engine: str = "local"
    granular: bool = False
    deadline: str = "2m"

    @property
    def deadline_seconds(self) -> float:
        """Return how long an attach may take, in seconds."""
        return parse_duration(self.deadline)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    boot: BootDefaults = BootDefaults()
    lend: LendDefaults = LendDefaults()
    attach: AttachDefaults = AttachDefaults()


_SECTIONS: dict[str, type[msgspec.Struct]] = {"boot": BootDefaults, "lend": LendDefaults, "attach": AttachDefaults}
_CHOICES = {
    "boot.accel": ("auto", "kvm", "tcg"),
    "boot.firmware": ("bios", "uefi"),
    "boot.memory_engine": tuple(engine.value for engine in MemoryEngineName),
    "attach.engine": tuple(engine.value for engine in Engine),
}
_COUNTS = {"boot.cpus": 1, "boot.far_nodes": 0, "boot.far_cpus": 0, "lend.cpus": 0}


def load_config(path: Path | None = None) -> Config:
    """Return the user's defaults, the built-in ones where there is no file; raises `UsageError` naming file and key."""
    path = path or layout.config_file()
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    import tomllib

    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    _refuse_unknown(data, path)
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {_readable(error)}") from error
    _check_values(config, path)
    return config


def _refuse_unknown(data: dict[str, Any], path: Path) -> None:
    import difflib

    keys: list[tuple[str, str, list[str]]] = []
    for section, content in data.items():
        keys.append(("", section, list(_SECTIONS)))
        if section in _SECTIONS and isinstance(content, dict):
            known = list(_SECTIONS[section].__struct_fields__)
            keys += [(f"{section}.", key, known) for key in content]
    for prefix, key, known in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known are {', '.join(prefix + k for k in known)}"
            raise UsageError(f"{path} has an unknown key {prefix}{key}", hint=hint)


def _check_values(config: Config, path: Path) -> None:
    """Parse every size and duration once, so that a bad one is refused with its key."""
    checks: dict[str, Callable[[], object]] = {
        "boot.memory": lambda: config.boot.memory_bytes,
        "boot.far_memory": lambda: config.boot.far_memory_bytes,
        "boot.gpu_window": lambda: config.boot.gpu_window_bytes,
        "boot.deadline": lambda: config.boot.deadline_seconds,
        "lend.memory": lambda: config.lend.memory_bytes,
        "lend.name": lambda: config.lend.name and layout.check_name(config.lend.name, "lender"),
        "attach.deadline": lambda: config.attach.deadline_seconds,
    }
    for key, check in checks.items():
        try:
            check()
        except VmcoalError as error:
            raise UsageError(f"{path}: {key}: {error.message}", hint=error.hint) from error
    for key, choices in _CHOICES.items():
        value = _value(config, key)
        if value not in choices:
            raise UsageError(f"{path}: {key}: {value!r} is none of {', '.join(choices)}")
    for key, least in _COUNTS.items():
        value = _value(config, key)
        if not least <= value <= 4096:
            raise UsageError(f"{path}: {key}: {value} is not a count", hint=f"give a number from {least} to 4096")


def _value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _readable(error: msgspec.ValidationError) -> str:
    """Return msgspec's message with the key first: ``boot.cpus: Expected `int`, got `str```."""
    message, _, where = str(error).partition(" - at `$.")
    return f"{where.rstrip('`')}: {message}" if where else message

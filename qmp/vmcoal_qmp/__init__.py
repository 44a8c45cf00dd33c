"""Typed QMP commands and events over qemu.qmp."""

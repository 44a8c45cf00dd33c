"""Coalescent computing: a running QEMU/KVM guest that grows with hardware borrowed from nearby hosts."""

__version__ = "0.1.0"

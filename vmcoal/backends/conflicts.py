"""What an engine's traits exclude on a machine. Pure: planning compares data, nothing is looked at."""

from __future__ import annotations

from vmcoal.backends.base import EngineTraits
from vmcoal.errors import ConflictError, PrerequisiteError
from vmcoal.model.machine import Accel, MachineSpec
from vmcoal.policy.engine import excluded_features


def conflicts(traits: EngineTraits, spec: MachineSpec) -> list[str]:
    """Return one reason for each thing in ``spec`` that the engine excludes."""
    reasons = []
    if traits.needs_kvm and spec.accel is not Accel.KVM:
        reasons.append(f"engine {traits.name} needs KVM, and this VM runs with {spec.accel.value.upper()}")
    if not spec.far_nodes:
        reasons.append("this VM was booted without far nodes, so there is nowhere to attach to")
    return reasons + excluded_features(traits.excludes, spec)


def refuse_conflicts(traits: EngineTraits, spec: MachineSpec) -> None:
    """Raise `PrerequisiteError` if this host cannot run the engine, `ConflictError` if the machine excludes it."""
    if traits.missing:
        raise PrerequisiteError(f"engine {traits.name} cannot run on this host: {traits.missing}", hint=traits.remedy)
    reasons = conflicts(traits, spec)
    if reasons:
        raise ConflictError(
            "; ".join(reasons),
            hint="boot it with --far-nodes" if not spec.far_nodes else "boot it without that, or choose another engine",
            reasons=reasons,
        )

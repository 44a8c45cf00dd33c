"""``vmcoal doctor``."""

from __future__ import annotations

import click

from vmcoal.cli.app import Group
from vmcoal.cli.doctor_gpu import doctor_gpu
from vmcoal.cli.output import print_json, table
from vmcoal.cli.params import output_option
from vmcoal.errors import PrerequisiteError
from vmcoal.host.checks import CHECKS, QEMU, Check, Duty, Finding, Level, Seen, run_checks
from vmcoal.host.facts import Host

_UNMET = PrerequisiteError.exit_code


@click.group(
    cls=Group,
    invoke_without_command=True,
    example="""
    vmcoal doctor
    vmcoal doctor --for lend -o json
    vmcoal doctor gpu
    """,
)
@click.option(
    "--for",
    "duty",
    type=click.Choice([*(duty.value for duty in Duty), "all"]),
    default="all",
    show_default=True,
    help="What this host shall do.",
)
@output_option
@click.pass_context
def doctor(ctx: click.Context, duty: str, form: str) -> None:
    """Check what this host can do by trying it, and say how to mend what is missing.

    The exit code is 3 where something is missing that cannot be done without.
    """
    if ctx.invoked_subcommand is not None:
        return
    duties = frozenset(Duty) if duty == "all" else frozenset({Duty(duty)})
    findings = run_checks([*CHECKS, *QEMU_CHECKS], Host(), duties)
    if form == "json":
        print_json(findings)
    else:
        click.echo(findings_text(findings))
    if any(finding.level is Level.FAIL for finding in findings):
        raise click.exceptions.Exit(_UNMET)


doctor.add_command(doctor_gpu)


def findings_text(findings: list[Finding]) -> str:
    """Return the table of findings, the remedies below it, and a summing-up."""
    marks = {Level.OK: "ok", Level.WARN: "warn", Level.FAIL: "FAIL"}
    lines = [table(("", "CHECK", "FOUND"), [(marks[f.level], f.description, f.found) for f in findings])]
    wrong = [finding for finding in findings if finding.remedy]
    if wrong:
        lines += ["", "What to do:", *(f"  {finding.description}: {finding.remedy}" for finding in wrong)]
    failed = sum(finding.level is Level.FAIL for finding in findings)
    warned = sum(finding.level is Level.WARN for finding in findings)
    lines += ["", _summary(failed, warned)]
    return "\n".join(lines)


def _summary(failed: int, warned: int) -> str:
    if failed:
        return f"Not ready: {failed} of the checks failed" + (f", {warned} more warn." if warned else ".")
    return f"Ready, with {warned} warning" + ("s." if warned > 1 else ".") if warned else "Ready."


def _accel(host: Host) -> Seen:
    """Whether KVM runs a probe guest; TCG always works, so this only warns."""
    from vmcoal.host.accel import probe_accel

    if host.which(QEMU) is None:
        return Seen(False, "cannot be tried without QEMU", "apt install qemu-system-x86")
    probe = probe_accel(fresh=True)
    if probe.kvm:
        return Seen(True, f"KVM: {probe.reason}")
    return Seen(False, f"TCG, several times slower, because {probe.reason}", probe.remedy)


def _uefi(host: Host) -> Seen:
    from vmcoal.machine.firmware import find_uefi

    del host
    try:
        return Seen(True, find_uefi().code)
    except PrerequisiteError as error:
        return Seen(False, error.message, error.hint)


def _memory_engine(host: Host) -> Seen:
    """Which engine borrowed memory will come through: the page engine, or the one that it falls back to, and why."""
    from vmcoal.backends.nbd import missing_client
    from vmcoal.backends.probe import engine_facts
    from vmcoal.policy.engine import pager_obstacle

    facts = engine_facts(QEMU if host.which(QEMU) else None)
    obstacle = pager_obstacle(facts)
    if obstacle is None:
        return Seen(True, f"pager: faults are taken through {facts.faults.by}")
    missing = missing_client()
    if missing:
        return Seen(False, f"none: not pager, {obstacle.reason}; not fuse, {missing}", obstacle.remedy, True)
    return Seen(False, f"fuse, several times slower, because {obstacle.reason}", obstacle.remedy)


QEMU_CHECKS = (
    Check(
        "acceleration",
        "KVM runs a probe guest",
        _accel,
        "use a host whose KVM works",
        False,
        frozenset({Duty.BOOT}),
    ),
    Check(
        "memory-engine",
        "the engine of borrowed memory",
        _memory_engine,
        "vmcoal doctor --for attach",
        False,
        frozenset({Duty.ATTACH}),
    ),
    Check("uefi", "UEFI firmware, for --firmware uefi", _uefi, "apt install ovmf", False, frozenset({Duty.BOOT})),
)

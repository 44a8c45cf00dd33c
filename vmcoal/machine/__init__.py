"""Mechanism for one VM: spec to argv, process, monitor, hotplug of cpu, memory and pci."""

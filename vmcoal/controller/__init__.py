"""One controller for each VM: leases, journal, reconcile, control socket."""

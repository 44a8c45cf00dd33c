"""Facts about this host and preflight checks."""

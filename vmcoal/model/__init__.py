"""Plain frozen data: what a machine, a far node, a lease, a link and an attachment are. No I/O."""

"""Client of the holder, the small process that owns QEMU and the data-plane processes."""

"""Between hosts: identity, pairing, sessions, messages, probes."""

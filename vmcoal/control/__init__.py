"""Control sockets: how the command line talks to the daemons of this host."""

"""Where leased things live: memory engines and vCPU engines."""

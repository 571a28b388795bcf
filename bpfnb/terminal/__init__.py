"""Tools in a terminal: ``bpfnb run``."""

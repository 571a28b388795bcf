"""Bringing bpfnb to a host that ssh reaches, so that far runs there."""

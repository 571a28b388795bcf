"""Attach loaded programs to probes; list the probes there are."""

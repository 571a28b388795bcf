"""Tracers: what every one can do, where one runs, how it is started and spoken to."""

"""A tracer on another host, over a connection that a command makes: ``ssh HOST ... far``.

Messages go from the notebook to ``near`` (a local process), from there in frames to ``far`` (on the host), and from
there to the tracer. docs/architecture.md has the picture.
"""

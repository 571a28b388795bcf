"""A tracer on another host, over a connection that a command makes: ``ssh HOST ... far``.

notebook  <-- socketpair -->  near  <-- the command's pipes -->  far  <-- socketpair -->  tracer
             the protocol             frames (frames.py)               the protocol
"""

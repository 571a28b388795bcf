"""Columns that grow: the bytes of rows, decoded once, in buffers that pandas and Arrow look at without copying them.

A frame over them is cheap to make and never changes, because
- what lies before a buffer's end is never written again; new values go behind it;
- a full buffer, or one whose oldest values go, is left to whoever still looks at it, and another takes its place;
- a buffer's numbers are handed out through one Series, which lives as long as the column uses the buffer: pandas sees
  that they are shared, and copies them before it writes (pandas 3; before, frames are copied when handed out).

Pure: no tracer, no kernel, no threads.
"""

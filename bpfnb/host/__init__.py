"""Where a tracer is, how it is reached, and the talk with it."""

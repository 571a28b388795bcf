"""The running sessions: starting them, reading their outputs and maps, and ending them."""

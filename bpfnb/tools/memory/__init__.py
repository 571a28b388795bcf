"""Tools about memory."""

"""Addresses to names, names to addresses."""

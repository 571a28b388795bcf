"""Recordings: sessions kept in files, on any machine."""

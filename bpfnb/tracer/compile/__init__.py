"""A Program to loaded BPF programs, through bcc."""

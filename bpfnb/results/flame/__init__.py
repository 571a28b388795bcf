"""Flame graphs: counted stacks as a tree of functions, and as the files that other tools read."""

"""The kernel's interfaces, each in one place."""

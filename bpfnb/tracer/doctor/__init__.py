"""The doctor's rows about this machine."""

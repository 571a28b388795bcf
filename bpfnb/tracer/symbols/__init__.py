"""Look up names of addresses, and addresses of names."""

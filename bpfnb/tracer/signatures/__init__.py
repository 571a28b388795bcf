"""C types of what probes give their programs, from the BTF of the kernel and its modules and from tracefs."""

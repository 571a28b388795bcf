"""bpfnb beside bcc's own Python readers, bcc's maps and bpftrace, on the same programs, in one run: scripts/bench."""

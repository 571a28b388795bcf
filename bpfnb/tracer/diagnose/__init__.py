"""Messages of clang, bcc and the verifier to errors at the cell's own lines."""

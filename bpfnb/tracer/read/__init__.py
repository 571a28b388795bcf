"""The kernel's buffers to rows in segments."""

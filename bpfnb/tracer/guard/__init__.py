"""What sessions cost, and ending those beyond their limits."""

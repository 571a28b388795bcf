"""Tools about CPUs: who waits for one, who has it, who gives it up, what interrupts it."""

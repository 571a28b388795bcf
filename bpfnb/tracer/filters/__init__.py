"""Filters: the C that tests them, the processes and cgroups that they name, and following what processes start."""

"""What can be done with which kind of map, by the kernel's name of it."""

from __future__ import annotations

__all__ = ["ARRAYS", "GROWING", "HOLDS", "QUEUES", "TAKEN"]

# Kinds without entries that could be read, and why.
HOLDS = {
    "prog_array": "it holds programs",
    "perf_event_array": "it holds perf events",
    "cgroup_array": "it holds cgroups",
    "devmap": "it holds network devices",
    "devmap_hash": "it holds network devices",
    "cpumap": "it holds CPUs, to send packets to",
    "sockmap": "it holds sockets",
    "sockhash": "it holds sockets",
    "xskmap": "it holds sockets",
    "reuseport_sockarray": "it holds sockets",
    "sk_storage": "its values belong to sockets",
    "inode_storage": "its values belong to files",
    "task_storage": "its values belong to tasks",
    "cgroup_storage": "its values belong to cgroups",
    "percpu_cgroup_storage": "its values belong to cgroups",
    "cgrp_storage": "its values belong to cgroups",
    "ringbuf": "its events go to one reader and are gone",
    "user_ringbuf": "its events go to the program",
    "bloom_filter": "it knows whether it has seen a value, not which",
    "struct_ops": "it holds the kernel's own functions",
}
QUEUES = ("queue", "stack")
ARRAYS = ("array", "percpu_array")
TAKEN = (
    "hash",
    "percpu_hash",
    "lru_hash",
    "lru_percpu_hash",
)  # the kernel gives and deletes their entries in one step
# How many entries they have says something: they begin with none.
GROWING = (*TAKEN, "lpm_trie", "stack_trace", "hash_of_maps")

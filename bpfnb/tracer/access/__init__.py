"""Decide who may do what: the peer, the policy, its enforcement, the audit log."""

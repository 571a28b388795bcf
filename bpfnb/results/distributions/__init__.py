"""Distributions: numbers counted in buckets as they come, over time; and their bars."""

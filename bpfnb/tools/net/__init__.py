"""Tools about the network: who connects to whom, and what is sent."""

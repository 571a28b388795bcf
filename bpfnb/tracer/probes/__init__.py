"""What is known of probes before anything is attached: their signatures, and lists of them."""

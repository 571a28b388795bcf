"""Live views of what is counted: histograms, heat maps, the largest entries."""

"""A session's maps: read as DataFrames and histograms, read and written as mappings."""

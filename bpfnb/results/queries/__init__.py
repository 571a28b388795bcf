"""Questions about rows: in SQL, and by blocks of those that do not fit into memory."""

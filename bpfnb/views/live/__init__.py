"""Live views: a panel, the views on it, and the thread that keeps them up to date."""

"""Tools about files: who opens, reads and writes which, how long that takes, what the page cache spares."""

"""Tools about block devices: how long requests take, whose they are, what each process reads and writes."""

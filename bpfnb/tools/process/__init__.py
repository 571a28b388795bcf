"""Tools about processes: who starts, ends, is sent signals, asks for capabilities."""

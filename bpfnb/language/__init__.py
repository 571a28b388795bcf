"""A cell's text to a Program: pure, no kernel access; both processes use it."""

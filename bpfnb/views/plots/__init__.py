"""Pictures by matplotlib, drawn on Axes of figures that pyplot does not know."""

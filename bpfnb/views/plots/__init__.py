"""Pictures by matplotlib, of tables: rates, histograms, heat maps, timelines, latencies.

Each function draws one table on an Axes, the one it is given or one of a new Figure, and returns it. It shows what the
table says and nothing else. None of them knows pyplot, whose state is the user's.
"""

from bpfnb.views.plots.lines import COLOURS, HEIGHT, SECONDS, WIDTH, Curve, RatesFigure, levels, pick, short

__all__ = ["COLOURS", "HEIGHT", "SECONDS", "WIDTH", "Curve", "RatesFigure", "levels", "pick", "short"]

"""A session's numbers as metrics: what its outputs have delivered and lost, and its maps' entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.errors import BpfnbError
from bpfnb.exports.openmetrics import Family, Sample, metric_name
from bpfnb.results.maps.map import Map
from bpfnb.results.output import Output
from bpfnb.results.rates import RateMeter

__all__ = ["Metrics"]

_MAX_NUMBERS = 32  # of an entry: what has more, such as a stack, is no set of metrics
_WINDOW = 10.0  # seconds that a rate is of


class Metrics:
    """The metrics of a session, each time anew; of outputs, rates are kept up to date from call to call."""

    def __init__(self, name: str, meter: Callable[[str], RateMeter]) -> None:
        self._labels = {"session": name}
        self._meter = meter
        self._meters: dict[str, RateMeter] = {}

    def families(
        self, outputs: Mapping[str, Output], maps: Mapping[str, Map], running: bool, entries: int
    ) -> list[Family]:
        """Return all of them. ``entries``: how many of a map's are shown at most, those with the largest numbers."""
        whole = [self._running(running), *self._of_outputs(outputs)]
        lost = Family("bpfnb_map_refused_updates", "counter", "Updates of a map that the kernel refused.")
        hidden = Family("bpfnb_map_hidden_entries", "gauge", "Entries of a map that are not shown: there are too many.")
        unread = Family("bpfnb_map_unreadable", "gauge", "Maps that could not be read just now, or have no entries.")
        for name, map_ in maps.items():
            labels = {**self._labels, "map": name}
            lost.samples.append(Sample(labels, map_.lost, "_total"))
            try:
                families, more = self._histogram(map_), 0
                if not families:
                    families, more = self._entries(map_, entries)
            except BpfnbError:
                unread.samples.append(Sample(labels, 1))
                continue
            whole += families
            hidden.samples.append(Sample(labels, more))
        return [*whole, *(family for family in (lost, hidden, unread) if family.samples)]

    def _running(self, running: bool) -> Family:
        return Family("bpfnb_running", "gauge", "1 while the session runs.", "", [Sample(self._labels, int(running))])

    def _of_outputs(self, outputs: Mapping[str, Output]) -> Iterator[Family]:
        if not outputs:
            return
        events = Family("bpfnb_events", "counter", "Events that were delivered.")
        lost = Family("bpfnb_events_lost", "counter", "Events that could not be delivered.")
        dropped = Family("bpfnb_events_dropped", "counter", "Events delivered, and dropped since there were too many.")
        rate = Family("bpfnb_events_per_second", "gauge", f"Events per second, over the last {_WINDOW:.0f} s.")
        for name, output in outputs.items():
            labels = {**self._labels, "output": name}
            events.samples.append(Sample(labels, output.rows, "_total"))
            lost.samples.append(Sample(labels, output.lost, "_total"))
            dropped.samples.append(Sample(labels, output.dropped, "_total"))
            rate.samples.append(Sample(labels, self._rate(name)))
        yield from (events, lost, dropped, rate)

    def _rate(self, output: str) -> float:
        if output not in self._meters:
            self._meters[output] = self._meter(output)
        meter = self._meters[output]
        meter.update()
        first = max(meter.until - meter.length, 0)
        seconds = meter.seconds(first, meter.until)
        traced = ~np.isnan(seconds)
        return float(meter.counts(first, meter.until)[traced].sum() / seconds[traced].sum()) if traced.any() else 0.0

    def _histogram(self, map_: Map) -> list[Family]:
        """Return a histogram's buckets, counted up as the format has them. Its values are whole numbers: what is below
        2 is at most 1."""
        if not map_.is_histogram:
            return []
        frame = map_.hist(map_.buckets)
        family = Family(metric_name("bpfnb_map", map_.name), "histogram", f"The histogram {map_.name}.")
        groups = [column for column in frame.columns if column not in ("low", "high", "label")]
        keys = [name for name in map_.columns[0] if name not in ("slot", "bucket")]
        for group in groups:
            labels = {**self._labels, **_of_group(group, keys)} if groups != ["count"] else dict(self._labels)
            total = 0
            for high, count in zip(frame["high"].tolist(), frame[group].tolist(), strict=True):
                total += int(count)
                if np.isfinite(high):
                    family.samples.append(Sample({**labels, "le": str(float(high) - 1)}, total, "_bucket"))
            family.samples.append(Sample({**labels, "le": "+Inf"}, total, "_bucket"))
        return [family]

    def _entries(self, map_: Map, most: int) -> tuple[list[Family], int]:
        """Return the entries of a map with numbers, and how many of them are left out."""
        if not 0 < len(map_.numbers) <= _MAX_NUMBERS:
            return [], 0
        frame = map_.reduced("sum")
        numbers = [name for name in map_.numbers if name in frame.columns]
        keys = [name for name in map_.columns[0] if name in frame.columns]
        shown = frame
        if len(frame) > most and numbers:
            shown = frame.sort_values(numbers[0], ascending=False, kind="stable").head(most)
        families = []
        for column in numbers:
            ending = "" if len(numbers) == 1 else column
            name = metric_name("bpfnb_map", map_.name, *([ending] if ending else []))
            family = Family(name, "unknown", f"{column} of the map {map_.name}.")
            for row in shown[[*keys, column]].itertuples(index=False, name=None):
                labels = _unique(self._labels, dict(zip(keys, row[:-1], strict=True)))
                family.samples.append(Sample(labels, _number(row[-1])))
            families.append(family)
        return families, len(frame) - len(shown)


def _of_group(group: Any, keys: list[str]) -> dict[str, str]:
    values = group if isinstance(group, tuple) else (group,)
    return _unique({}, dict(zip(keys, values, strict=False)))


def _unique(given: dict[str, str], labels: Mapping[str, Any]) -> dict[str, str]:
    """Return labels with others behind them; one whose name is taken, or the format's own, has ``_`` at its end."""
    whole = dict(given)
    for key, value in labels.items():
        name = metric_name(key).lstrip("_") or "key"
        name = metric_name(name)
        while name in whole or name == "le":
            name += "_"
        whole[name] = "" if value is None or value is pd.NA else str(value)
    return whole


def _number(value: Any) -> int | float:
    return float(value) if isinstance(value, float) else int(value)

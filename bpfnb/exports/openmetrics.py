"""Numbers as OpenMetrics text, which Prometheus and others scrape.

https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["Family", "Sample", "metric_name", "openmetrics_text"]

_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")


class Sample(NamedTuple):
    """A number. ``suffix``: what follows the family's name, "_total", "_bucket" ..., or ""."""

    labels: dict[str, str]
    value: int | float
    suffix: str = ""


@dataclass
class Family:
    """A metric, with a number for each set of labels. Counters' samples have the suffix _total."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "unknown", "info"]
    help: str
    unit: str = ""
    samples: list[Sample] = field(default_factory=list)


def metric_name(*parts: str) -> str:
    """Return a name of a metric or label made of others' names: letters, digits and ``_``, no digit in front."""
    name = "_".join(_NO_LABEL.sub("_", part) for part in parts)
    return f"_{name}" if not name or name[0].isdigit() else name


def openmetrics_text(families: Iterable[Family]) -> str:
    """Return the text of metrics, up to its ``# EOF``. A family's unit is the end of its name, as the format has it."""
    lines = []
    for family in families:
        name = family.name
        lines += [f"# TYPE {name} {family.kind}"]
        lines += [f"# UNIT {name} {family.unit}"] if family.unit else []
        lines += [f"# HELP {name} {_escaped(family.help)}"]
        lines += [f"{name}{sample.suffix}{_labels(sample.labels)} {_value(sample.value)}" for sample in family.samples]
    return "\n".join([*lines, "# EOF", ""])


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _value(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(value)

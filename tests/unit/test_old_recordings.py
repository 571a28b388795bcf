"""Recordings of older versions stay readable: files kept here, and what is in them, as it was when they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bpfnb

HERE = Path(__file__).parents[1] / "recordings"


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, pd.Timestamp):
        return value.value
    if isinstance(value, float | np.floating):
        return float(value).hex()
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return str(int(value)) if isinstance(value, int | np.integer) else value


def values(frame: pd.DataFrame) -> dict[str, list[Any]]:
    return {str(name): [plain(value) for value in frame[name]] for name in frame}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of losses, which are compared
@pytest.mark.parametrize("version", ["v1"])
def test_an_old_recording_is_read_to_the_last_value(version: str) -> None:
    expected = json.loads((HERE / f"{version}.json").read_text())
    session = bpfnb.open(HERE / f"{version}.bpfnb.zip")
    assert list(session.outputs) == list(expected["outputs"])
    for name, output in session.outputs.items():
        wanted, frame = expected["outputs"][name], output.df
        assert values(frame) == wanted["values"]
        dtypes = {str(column): str(dtype) for column, dtype in frame.dtypes.items() if dtype.kind in "biufM"}
        assert dtypes == wanted["dtypes"]
        categories = {
            str(c): list(frame[c].cat.categories) for c in frame if isinstance(frame[c].dtype, pd.CategoricalDtype)
        }
        assert categories == wanted["categories"]
        assert (output.rows, output.lost) == (wanted["rows"], wanted["lost"])
    assert {name: values(map_.df) for name, map_ in session.maps.items()} == expected["maps"]
    folded = session.maps["traces"].folded(session.maps["counts"])
    assert dict(zip(folded["stack"], folded["count"].tolist(), strict=True)) == expected["folded"]
    snapshots = session.maps["hash"].every("1s").df
    assert snapshots["time"].astype("int64").tolist() == expected["snapshots"]["time"]
    assert values(snapshots)["value"] == expected["snapshots"]["value"]
    assert {name: getattr(session, name) for name in expected["session"]} == expected["session"]
    assert session.maps["hash"].lost == expected["refused"]
    assert {str(name): plain(value) for name, value in session.cost.iloc[0].items()} == {
        name: plain(value) for name, value in expected["cost"].items()
    }
    assert [(probe.requested, probe.kind) for probe in session.probes] == [("syscall:sync", "tracepoint")]
    assert [warning.message for warning in session.warnings][:2] == ["unused variable", "another process read along"]

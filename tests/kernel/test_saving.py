"""Frames of real events with every kind of column, written and read back, against what the program and Python know."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pandas as pd

import bpfnb

_libc = ctypes.CDLL(None)
CELL = """
enum side { LEFT, RIGHT };
struct event {
    u64 ts;
    u64 big;
    s16 small;
    bool yes;
    u32 three:3;
    enum side side;
    char comm[TASK_COMM_LEN];
    u8 ip[4];
    unsigned __int128 addr;
    u64 slots[100];
    u16 table[1100];
};
BPF_ARRAY(room, struct event, 1);
BPF_HASH(last, u32, struct event);
BPF_RINGBUF_OUTPUT(events, 64);
int f(void *ctx) {
    if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    int zero = 0;
    struct event *e = room.lookup(&zero);
    if (!e) return 0;
    e->ts = bpf_ktime_get_ns();
    e->big = ~0ULL - 1;
    e->small = -2;
    e->yes = true;
    e->three = 5;
    e->side = RIGHT;
    bpf_get_current_comm(&e->comm, sizeof(e->comm));
    e->ip[0] = 10;
    e->ip[3] = 1;
    e->addr = (unsigned __int128)7 << 100;
    e->slots[99]++;
    e->slots[0] = 1ULL << 63;
    e->table[1099] = 0x1234;
    events.ringbuf_output(e, sizeof(*e), 0);
    u32 key = 3;
    last.update(&key, e);
    return 0;
}
"""


def test_every_kind_of_column_survives_files(tmp_path: Path) -> None:
    with bpfnb.trace(CELL, name="kinds", attach={"syscall:sync": "f"}, cflags=[f"-DPID={os.getpid()}"]) as session:
        for _ in range(3):
            _libc.sync()
    df, last = session.df, session.maps["last"].df
    table = np.zeros(1100, np.uint16)
    table[1099] = 0x1234
    for frame, counts in ((df, [1, 2, 3]), (last, [3])):
        assert frame.big.unique().tolist() == [2**64 - 2]
        assert frame.small.unique().tolist() == [-2]
        assert frame.three.unique().tolist() == [5]
        assert frame.side.unique().tolist() == ["RIGHT"]
        assert frame.ip.isin([b"\x0a\0\0\1"]).all()
        assert frame.addr.unique().tolist() == [7 << 100]
        assert frame.table.unique().tolist() == [table.tobytes()]
        slots = frame.filter(like="slots[").to_numpy()
        assert slots.shape == (len(counts), 100)
        assert slots.dtype == np.uint64
        assert slots[:, 99].tolist() == counts
        assert slots[:, 0].tolist() == [2**63] * len(counts)
        saved = frame.astype({"addr": str})
        saved.to_parquet(tmp_path / "frame.parquet")
        saved.to_feather(tmp_path / "frame.feather")
        for back in (pd.read_parquet(tmp_path / "frame.parquet"), pd.read_feather(tmp_path / "frame.feather")):
            pd.testing.assert_frame_equal(back, saved, check_exact=True)
            assert back.addr.map(int).tolist() == frame.addr.tolist()
    value = session.maps["last"][3]
    assert value["slots"] == [2**63, *[0] * 98, 3]
    assert value["table"] == table.tolist()

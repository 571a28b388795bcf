"""What bpftrace and bcc's tools have written, read. Samples are theirs: bpftrace 0.17 on Linux 6.18, and excerpts of
bcc's tools/*_example.txt."""

from __future__ import annotations

import json
import random
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from examples import EXAMPLES

import bpfnb
from bpfnb.errors import ProgramError, UnknownName
from bpfnb.imports import Imported, read
from bpfnb.tools import toolbox

# ruff: noqa: E501 (lines as they were written)

BPFTRACE = r"""{"type": "attached_probes", "data": {"probes": 3}}
{"type": "printf", "data": "open /etc/ld.so.cache by 24986\n"}
{"type": "time", "data": "01:13:18\n"}
{"type": "lost_events", "data": {"events": 3}}
{"type": "lost_events", "data": {"events": 1}}
{"type": "map", "data": {"@by": {"cat,24991": 31, "cat,24990": 30}}}
{"type": "value", "data": [1,2,"abc"]}


{"type": "stats", "data": {"@a": 24989}}
{"type": "hist", "data": {"@h": [{"max": -1, "count": 2}, {"min": 0, "max": 0, "count": 12}, {"min": 2, "max": 3, "count": 1}]}}
{"type": "hist", "data": {"@lk": {"cat": [{"min": 0, "max": 4, "count": 124}, {"min": 5, "max": 9, "count": 62}]}}}
{"type": "map", "data": {"@ks": {"\n    perf_syscall_enter+397\n    syscall_trace_enter+384\n    do_syscall_64+506\n": 186}}}
{"type": "map", "data": {"@mx": {"7": 18446744073709551615, "8": 1}}}
{"type": "stats", "data": {"@s": {"count": 186, "average": 24989, "total": 4648109}}}
{"type": "map", "data": {"@tup": {"cat": [1,"x",66111313785516]}}}
{"type": "map", "data": {"@by": {"cat,24991": 40}}}
"""

TEXTS = {
    "opensnoop": "PID    COMM      FD ERR PATH\n17326  Web Content   7   0 /sys/a b\n2679   sed      -1   2 \n",
    "statsnoop": "PID    COMM               FD ERR PATH\n31126  bash               -1   2 /usr/local/sbin/iconfig\n",
    "execsnoop": "TIME     TIME(s) COMM             PID    PPID  RET ARGS\n"
    "14:08:23 2.849   mount            18049  1045    0 /bin/mount -p\n",
    "exitsnoop": "PCOMM            PID    PPID   TID    AGE(s)  EXIT_CODE\n"
    "sleep            19004  19003  19004  1.65    0\nbash             19003  17656  19003  1.65    code 65\n"
    "sleep            19014  19013  19014  0.23    signal 2 (INT)\n",
    "killsnoop": "TIME      PID    COMM             SIG  TPID   RESULT\n12:11:34  13967  bash             9    1024   -3\n",
    "capable": "TIME      UID    PID    COMM             CAP  NAME                 AUDIT\n"
    "22:11:23  114    2676   snmpd            12   CAP_NET_ADMIN        1\n",
    "biosnoop": "TIME(s)     COMM           PID    DISK    T SECTOR     BYTES  QUE(ms) LAT(ms)\n"
    "0.000771    sync           22177  nvme1n1 W 41963894   3072      0.11    0.47\n",
    "biotop": "PID    COMM             D MAJ MIN DISK       I/O  Kbytes  AVGms\n"
    "14501  cksum            R 202 1   xvda1      361   28832   3.39\n\n08:09:49 loadavg: 0.4 0.4 0.3 2/282 22115\n\n"
    "PID    COMM             D MAJ MIN DISK       I/O  Kbytes  AVGms\n"
    "22069  dd               R 202 1   xvda1     5993   47976   0.33\n",
    "runqslower": "Tracing run queue latency higher than 10000 us.\n\nTIME     COMM             TID           LAT(us)\n"
    "04:16:32 cc1              12924           12739\n",
    "tcpconnect": "PID    COMM         IP SADDR            DADDR            DPORT\n"
    "1479   telnet       4  127.0.0.1        127.0.0.1        23\n",
    "tcpaccept": "PID    COMM         IP RADDR            RPORT  LADDR            LPORT\n"
    "907    sshd         4  192.168.56.1     32324  192.168.56.102   22\n",
    "tcplife": "TIME,TIME(s),PID,COMM,IP,LADDR,LPORT,RADDR,RPORT,TX_KB,RX_KB,MS\n"
    "23:39:38,0.000064,3277,redis-server,4,127.0.0.1,28527,127.0.0.1,48098,5,0,0.32\n",
    "tcpstates": "SKADDR           C-PID C-COMM     LADDR           LPORT RADDR           RPORT OLDSTATE    -> NEWSTATE    MS\n"
    "ffff9fd7e8192000 0     swapper/5  100.66.100.185  63446 52.33.159.26    80    SYN_SENT    -> ESTABLISHED 1.373\n",
    "tcpretrans": "TIME     PID    IP LADDR:LPORT          T> RADDR:RPORT          STATE\n"
    "01:55:05 0      4  10.153.223.157:22    R> 69.53.245.40:34619   ESTABLISHED\n",
    "fsslower": "TIME     COMM           PID    T BYTES   OFF_KB   LAT(ms) FILENAME\n"
    "06:35:01 cron           16464  R 1249    4          16.05 common-auth\n",
    "gethostlatency": "TIME      PID    COMM          LATms HOST\n06:10:24  28011  wget          90.00 www.iovisor.org\n",
    "cachestat": "    HITS   MISSES  DIRTIES HITRATIO   BUFFERS_MB  CACHED_MB\n   17154    13750       15   55.51%          277       4422\n",
    "syscount": "Tracing syscalls, printing top 10... Ctrl+C to quit.\n[09:39:04]\nSYSCALL             COUNT\n"
    "write               10739\n[unknown: 321]          1\n",
    "hardirqs": "HARDIRQ                    TOTAL_usecs\neth0                             11441\n",
    "softirqs": "SOFTIRQ                    TOTAL_usecs\nnet_rx_action                    88188\n",
}
ROWS = {
    "opensnoop": [17326, "Web Content", 7, 0, None, "/sys/a b"],
    "exitsnoop": ["sleep", 19004, 19003, 19004, pd.Timedelta("1.65s"), 0, "exited 0"],
    "killsnoop": [pd.Timedelta("12:11:34"), 13967, "bash", 9, "SIGKILL", 1024, -3, "ESRCH"],
    "biosnoop": [
        pd.Timedelta(771, "us"), "sync", 22177, "nvme1n1", "W", 41963894, 3072, pd.Timedelta(110, "us"),
        pd.Timedelta(470, "us"),
    ],
    "biotop": [0, 14501, "cksum", "R", 202, 1, "xvda1", 361, 28832 * 1024, pd.Timedelta(3390, "us")],
    "runqslower": [pd.Timedelta("04:16:32"), "cc1", 12924, pd.Timedelta(12739, "us")],
    "tcplife": [
        pd.Timedelta("23:39:38"), pd.Timedelta(64, "us"), 3277, "redis-server", 4, "127.0.0.1", 28527, "127.0.0.1",
        48098, 5120, 0, pd.Timedelta(320, "us"),
    ],
    "tcpretrans": [pd.Timedelta("01:55:05"), 0, 4, "10.153.223.157", 22, "R", "69.53.245.40", 34619, "ESTABLISHED"],
    "cachestat": [17154, 13750, 15, pytest.approx(0.5551), 277, 4422],
}  # fmt: skip


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


# --- bpftrace -----------------------------------------------------------------------------------------------------


def test_bpftrace(tmp_path: Path) -> None:
    made = bpfnb.open(written(tmp_path, "a.json", BPFTRACE))
    assert isinstance(made, Imported)
    assert (made.kind, made.lost, made.notes) == ("bpftrace", 4, ())
    assert made.df.to_dict("list") == {
        "type": ["printf", "time", "value"],
        "msg": ["open /etc/ld.so.cache by 24986", "01:13:18", '[1, 2, "abc"]'],
    }
    maps = {name: part.df.to_dict("list") for name, part in made.maps.items()}
    assert maps["@by"] == {"print": [0, 0, 1], "key": ["cat,24991", "cat,24990", "cat,24991"], "value": [31, 30, 40]}
    assert maps["@a"] == {"value": [24989]}
    assert maps["@h"] == {
        "low": [-np.inf, 0, 2], "high": [0, 1, 4], "label": ["(..., 0)", "[0]", "[2, 4)"], "count": [2, 12, 1]
    }  # fmt: skip
    assert maps["@lk"]["key"] == ["cat", "cat"]
    assert maps["@ks"] == {
        "stack": ["do_syscall_64+506;syscall_trace_enter+384;perf_syscall_enter+397"],
        "count": [186],
    }
    assert maps["@mx"] == {"key": [7, 8], "value": [2**64 - 1, 1]}
    assert made.maps["@mx"].df["value"].dtype == np.uint64
    assert maps["@s"] == {"count": [186], "average": [24989], "total": [4648109]}
    assert maps["@tup"] == {"key": ["cat"], "value": ['[1, "x", 66111313785516]']}
    assert made.flame("@ks").total == 186
    with pytest.raises(UnknownName, match="there is no '@bx'; did you mean"):
        made.maps["@bx"]


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "bpftrace.json", '{"type": "map", "data": {"@": {"a": 1}}}\n')
    exec(EXAMPLES['theirs = bpfnb.open("bpftrace.json")'].text, names := {"bpfnb": bpfnb})
    assert names["theirs"].maps["@"].df.to_dict("list") == {"key": ["a"], "value": [1]}


def test_only_maps(tmp_path: Path) -> None:
    one = '{"type": "map", "data": {"@": {"a": 1}}}\n'
    assert read(written(tmp_path, "one", one)).df.to_dict("list") == {"key": ["a"], "value": [1]}
    two = read(written(tmp_path, "two", one + one.replace("@", "@b")))
    with pytest.raises(ProgramError, match=r"^two has several results: maps\['@'\].df, maps\['@b'\].df$"):
        two.df  # noqa: B018


# --- bcc ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", sorted(TEXTS))
def test_tables(tool: str, tmp_path: Path) -> None:
    made = read(written(tmp_path, f"{'statsnoop' if tool == 'statsnoop' else 'x'}.txt", TEXTS[tool]))
    assert made.kind == tool
    known = [column.name for column in toolbox.find(tool).columns]
    more = {"print", "time_of_day", "since", "buffers_mb", "cached_mb"}
    ours = [name for name in made.df.columns if name not in more]
    assert ours == [name for name in known if name in ours]  # names, and their order
    if tool in ROWS:
        assert [None if value is pd.NA else value for value in made.df.astype(object).iloc[0].tolist()] == [
            pytest.approx(np.nan, nan_ok=True) if value is None else value for value in ROWS[tool]
        ]


def test_types_are_the_tools(tmp_path: Path) -> None:
    frame = read(written(tmp_path, "x", TEXTS["opensnoop"])).df
    assert frame.dtypes.astype(str).to_dict() == {
        "pid": "uint32", "comm": "category", "fd": "int32", "err": "int32", "err_error": "category", "path": "str"
    }  # fmt: skip
    assert frame["path"].tolist() == ["/sys/a b", ""]
    assert frame["err_error"].tolist()[1] == "ENOENT"
    ends = read(written(tmp_path, "y", TEXTS["exitsnoop"])).df
    assert ends["exit_code_wait"].tolist() == ["exited 0", "exited 65", "killed by SIGINT"]
    assert read(written(tmp_path, "z", TEXTS["biotop"])).df["print"].tolist() == [0, 1]
    unknown = read(written(tmp_path, "u", TEXTS["syscount"])).df
    assert unknown.to_dict("list") == {"syscall": ["write", "[unknown: 321]"], "count": [10739, 1]}


def test_histograms(tmp_path: Path) -> None:
    text = (
        "Tracing block device I/O... Hit Ctrl-C to end.\n^C\n\ndisk = b'xvda1'\n"
        "     usecs               : count     distribution\n"
        "         0 -> 1          : 0        |                                        |\n"
        "         2 -> 3          : 742      |************************************    |\n"
        "\ndisk = 'xvdb'\n     usecs               : count     distribution\n"
        "         0 -> 1          : 7        |****************************************|\n"
    )
    made = read(written(tmp_path, "x", text))
    assert made.kind == "biolatency"
    us = pd.Timedelta(1, "us")
    assert made.df.to_dict("list") == {
        "disk": ["xvda1", "xvda1", "xvdb"], "low": [0 * us, 2 * us, 0 * us], "high": [2 * us, 4 * us, 2 * us],
        "label": ["[0, 2us)", "[2us, 4us)", "[0, 2us)"], "count": [0, 742, 7],
    }  # fmt: skip
    again = text[: text.index("\ndisk = 'xvdb'")] + text[text.index("disk = b") : text.index("\ndisk = 'xvdb'")]
    assert read(written(tmp_path, "y", again)).df["print"].tolist() == [0, 0, 1, 1]


def test_stacks(tmp_path: Path) -> None:
    text = (
        "Sampling at 49 Hertz of all threads by user + kernel stack... Hit Ctrl-C to end.\n^C\n"
        "    page_fault\n    --\n    main\n    -                Web Content (9036)\n        3\n\n"
        "    [unknown]\n    -                sign-file (8877)\n        1\n\n"
    )
    made = read(written(tmp_path, "x", text))
    assert made.df.to_dict("list") == {
        "pid": [9036, 8877], "comm": ["Web Content", "sign-file"], "stack": ["main;page_fault", "[unknown]"], "count": [3, 1],
    }  # fmt: skip
    off = text.replace("Sampling at 49 Hertz of", "Tracing off-CPU time (us) of")
    assert read(written(tmp_path, "y", off)).df["total"].tolist() == [pd.Timedelta(3, "us"), pd.Timedelta(1, "us")]


# --- bad input ----------------------------------------------------------------------------------------------------


def test_odd_and_torn_lines(tmp_path: Path) -> None:
    text = TEXTS["opensnoop"] + "WHAT?\x1b[2J\udcff\n17327  b   7   0 /sys/b\n17328  torn   7"
    with pytest.warns(RuntimeWarning, match=r"x: 1 line is left out, line 4: 'WHAT\?\\\\x1b\[2J"):
        made = read(written(tmp_path, "x", text))
    assert made.df["pid"].tolist() == [17326, 2679, 17327]
    assert made.notes == ("its last line was cut off, and is not in it",)
    with pytest.raises(ProgramError, match=r"y, line 2: 'a' is no line of opensnoop$"):
        read(written(tmp_path, "y", "PID COMM FD ERR PATH\na\nb\n1 c 2 0 /x\n"))
    with pytest.warns(RuntimeWarning, match=r"z: 2 lines are left out, the first is line 18: '\{\"type\": \"map\""):
        read(written(tmp_path, "z", BPFTRACE + '{"type": "map", "data": [1]}\n[[\n' + '{"type": "pri'))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"is neither a recording nor the output of bpftrace -f json or a tool of bcc: it is empty$"),
        ("hello\n\x1b[2J\n", r"of bcc: it begins with 'hello'$"),
        ('{"a": 1}\n', r"of bcc: it begins with '\{\"a\": 1\}'$"),
    ],
)
def test_other_files(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=why):
        bpfnb.open(written(tmp_path, "x", text))
    with pytest.raises(ProgramError, match=r"none: there is no such file$"):
        read(tmp_path / "none")
    with pytest.raises(ProgramError, match=r": it is no file$"):
        read(tmp_path)


def test_hostile_text_is_read_or_refused_in_time(tmp_path: Path) -> None:
    """Mutations of the samples: a session or one line, never another error, and never long."""
    seeded = random.Random(14)
    samples = [BPFTRACE, *TEXTS.values()]
    pieces = ["\n", "\x00", "\udcff", "{", '"', "[" * 5000, " " * 20000, "9" * 5000, "-", "1e999", "\u202e", "|", ": "]
    for _ in range(400):
        text = seeded.choice(samples)
        for _ in range(seeded.randint(1, 4)):
            at = seeded.randrange(len(text))
            text = text[:at] + seeded.choice(pieces) + text[at + seeded.randint(0, 9) :]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with suppress(ProgramError):
                repr(read(written(tmp_path, "x", text)))


def test_a_column_of_every_kind_of_value(tmp_path: Path) -> None:
    """What maps of bpftrace hold by turns."""
    values = [1, -5, "x", [1, 2], {"a": 1}, None, True, 2**70, 0.5]
    for value in values:
        text = json.dumps({"type": "map", "data": {"@": {"k": value, "l": 1}}}) + "\n"
        assert len(read(written(tmp_path, "x", text)).df) == 2

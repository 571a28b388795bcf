"""The files that ``bpfnb setup`` writes: the tracer's launcher, systemd's units, the rule for sudo."""

from __future__ import annotations

__all__ = ["LAUNCHER", "RULE", "SERVICE", "SOCKET"]

# Runs as root for members of the group. sudo has cleaned the environment, and the launcher drops what an administrator
# lets through. Descriptor 3 would be systemd's second copy of the connection. The package itself is not executed: it
# imports the notebook's side, with pandas.
LAUNCHER = """\
#!{folder}/bin/python3 -I
import importlib.util, os, runpy, sys

os.closerange(3, 1 << 16)
os.environ.clear()
os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", LANG="C.UTF-8", OPENBLAS_NUM_THREADS="1")
os.chdir("/")
os.umask(0o022)
sys.argv[1:] = ["--service"]
sys.modules["bpfnb"] = importlib.util.module_from_spec(importlib.util.find_spec("bpfnb"))
runpy.run_module("bpfnb.tracer", run_name="__main__", alter_sys=True)
"""

# sudo's rule: only this program, without arguments and without the caller's environment, whatever is set elsewhere.
RULE = """\
# Made by `bpfnb setup`; `bpfnb setup --undo` removes it.
Defaults!{launcher} env_reset, !env_keep, !env_check, !setenv, !requiretty
%{group} ALL=(root) NOPASSWD: {launcher} ""
"""

# There is no limit on how often users connect: beyond it, systemd would close the socket for everybody.
SOCKET = """\
# Made by `bpfnb setup`; `bpfnb setup --undo` removes it.
[Unit]
Description=Tracing with bpfnb {version}, for the group {group}

[Socket]
ListenStream={socket}
SocketUser=root
SocketGroup={group}
SocketMode=0660
DirectoryMode=0755
RemoveOnStop=yes
Accept=yes
MaxConnections=64
MaxConnectionsPerSource=16
TriggerLimitIntervalSec=0

[Install]
WantedBy=sockets.target
"""

# bpfnb/tracer/kernel/capabilities.py says what each capability is for. CAP_SYSLOG: to read the kernel's addresses,
# once. CAP_SETUID, CAP_SETGID and a mount namespace: to compile with the asking user's permissions
# (bpfnb/tracer/access/impersonate.py). Not set: ProtectKernelTunables (tracefs is written to), ProtectKernelModules (it
# hides the kernel's headers), ProtectProc, PrivateTmp, ProtectHome=yes (programs are traced anywhere; perf maps are in
# /tmp).
SERVICE = """\
# Made by `bpfnb setup`; `bpfnb setup --undo` removes it.
[Unit]
Description=A tracer of bpfnb {version}
CollectMode=inactive-or-failed

[Service]
ExecStart={launcher}
StandardInput=socket
StandardOutput=journal
StandardError=journal
SyslogIdentifier=bpfnb
KillMode=mixed
TimeoutStopSec=60
CapabilityBoundingSet=CAP_BPF CAP_PERFMON CAP_DAC_READ_SEARCH CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_IPC_LOCK CAP_SYSLOG
CapabilityBoundingSet=CAP_SETUID CAP_SETGID
NoNewPrivileges=yes
CacheDirectory=bpfnb
LogsDirectory=bpfnb
ProtectSystem=strict
ProtectHome=read-only
ReadOnlyPaths=/proc/sys /sys
ReadWritePaths=-/sys/kernel/tracing -/sys/kernel/debug -/sys/fs/bpf
ProtectControlGroups=yes
ProtectHostname=yes
PrivateNetwork=yes
DevicePolicy=closed
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=mnt
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
OOMScoreAdjust=500
LimitNOFILE=65536
LimitMEMLOCK=infinity
LimitCORE=0
TasksMax=512
"""

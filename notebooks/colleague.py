"""A colleague's machine, nearly: Python as user nobody, where there is neither bcc nor any of the kernel's tracing.

That takes root. Who is not root is their own colleague: the same Python, as themselves.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

_HIDDEN = ("/usr/lib/python3/dist-packages", "/sys/kernel", "/etc/sudoers.d")  # bcc's folder first


def run(code: str, *arguments: str | os.PathLike[str]) -> str:
    """Run Python code there with ``arguments``, which are files that it may read. Return what it printed."""
    words = [sys.executable, "-c", code, *map(os.fspath, arguments)]
    if os.geteuid() != 0:
        return _output(words)
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        script = [f"mount -t tmpfs -o mode=755 none '{place}'", f"mkdir -m 777 '{place}/home'"]
        needed = {Path(sys.base_prefix), Path(sys.prefix), Path(__file__).resolve().parents[1]}
        needed |= {Path(path).resolve().parent for path in arguments}
        for number, folder in enumerate(sorted(needed)):
            script += _opened(folder, Path(place, str(number)))
        script += [f"mount -t tmpfs none '{hidden}'" for hidden in _HIDDEN if Path(hidden).is_dir()]
        script.append('exec "$@"')
        become = ["setpriv", "--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups"]
        become += ["env", f"HOME={place}/home"]
        return _output(["unshare", "--mount", "sh", "-ec", "\n".join(script), "sh", *become, *words])


def _opened(folder: Path, shadow: Path) -> list[str]:
    """Return commands that let everybody reach a folder, where a parent (root's home, say) is closed to others."""
    closed = [path for path in [*reversed(folder.parents), folder] if not path.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return []
    place = shadow / folder.relative_to(closed[0])
    commands = [f"mkdir -p '{place}'", f"mount --bind '{folder}' '{place}'"]
    if closed[0] == folder:  # a bind shows its own mode: what is in it is shown in a folder of ours
        commands = [f"mkdir -p '{place}'", f"cp -r '{folder}/.' '{place}'", f"chmod -R a+rX '{place}'"]
    return [*commands, f"mount --rbind '{shadow}' '{closed[0]}'"]


def _output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout

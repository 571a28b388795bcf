"""bpfnb installed from its wheel, as docs/installation.md says: in an environment of its own, and in a container."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from lanes import require_tracing

ROOT = Path(__file__).resolve().parents[2]
CALLS = 1_000
# Docker's defaults (moby: oci/caps/defaults.go), and what docs/installation.md adds.
DEFAULT = (
    "chown,dac_override,fsetid,fowner,mknod,net_raw,setgid,setuid,setfcap,setpcap,net_bind_service,sys_chroot,kill"
)
ADDED = "bpf,perfmon"

COUNTED = f"""
import os, sys
import bpfnb
open("/proc/self/comm", "w").write("counts-getpgid")
with bpfnb.count("syscall:getpgid", by="comm") as session:
    for _ in range({CALLS}):
        os.getpgid(0)
print(session.df.set_index("comm")["count"]["counts-getpgid"], bpfnb.__file__)
"""
BY_PID = """
import os
import bpfnb
try:
    bpfnb.count("syscall:getpgid", pid=os.getpid()).stop()
except bpfnb.BpfnbError as error:
    print(error)
"""
# The container: $1 is a folder for its layers, $2 its capabilities, the rest a command. Folders that hold Python, which
# may be other file systems, are put into its root.
CONTAINER = """
layers=$1 capabilities=$2; shift 2
mount -t tmpfs none $layers
mkdir $layers/upper $layers/work $layers/root
root=$layers/root
mount -t overlay -o lowerdir=/,upperdir=$layers/upper,workdir=$layers/work overlay $root
mount -t proc proc $root/proc
mount -t sysfs -o ro sysfs $root/sys
mount --bind /sys/kernel/tracing $root/sys/kernel/tracing
mount --bind /dev $root/dev
for folder in $FOLDERS; do mkdir -p $root$folder; mount --bind -o ro $folder $root$folder; done
exec setpriv --bounding-set=-all,$capabilities --inh-caps=-all chroot $root "$@"
"""


@pytest.fixture(scope="module", autouse=True)
def tracing() -> None:
    require_tracing()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and without the system's packages. Dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    dependencies = [path for path in sys.path if path.startswith(sys.prefix) and path.endswith("-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return python


def run(*command: str | Path, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | environment
    done = subprocess.run(command, cwd="/", env=env, text=True, capture_output=True, timeout=100)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def container(python: Path, folder: Path, capabilities: str, *command: str) -> str:
    folders = {str(path) for path in (python.parents[1], Path(sys.prefix), Path(sys.base_prefix))}
    capabilities = ",".join(f"+{name}" for name in capabilities.split(","))
    namespaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private"]
    return run(
        "unshare", *namespaces, "sh", "-ec", CONTAINER, "sh", folder, capabilities, python, *command,
        FOLDERS=" ".join(sorted(folders, key=len)),
    )  # fmt: skip


def test_a_virtual_environment(python: Path) -> None:
    count, place = run(python, "-I", "-c", COUNTED).split()
    assert int(count) == CALLS
    assert Path(place).is_relative_to(python.parents[1])
    assert run(python.with_name("bpfnb"), "doctor").startswith("Tracing works.\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes containers here")
def test_a_container(python: Path, tmp_path: Path) -> None:
    count, place = container(python, tmp_path, f"{DEFAULT},{ADDED}", "-I", "-c", COUNTED).split()
    assert int(count) == CALLS
    assert Path(place).is_relative_to(python.parents[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes containers here")
def test_a_container_without_the_rights(python: Path, tmp_path: Path) -> None:
    said = container(python, tmp_path, DEFAULT, "-I", "-c", BY_PID.replace("pid=os.getpid()", "name='x'"))
    assert "CAP_BPF" in said
    assert said.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes containers here")
def test_a_filter_by_process_in_a_container(python: Path, tmp_path: Path) -> None:
    """Its pid is another process's on the host: refused, or right."""
    said = container(python, tmp_path, f"{DEFAULT},{ADDED}", "-I", "-c", BY_PID)
    assert "the tracer runs in a pid namespace of its own" in said
    assert said.count("\n") == 1


@pytest.mark.timeout(900)
@pytest.mark.skipif(os.environ.get("BPFNB_FROM_INDEX") != "1", reason="takes minutes: scripts/test --full")
def test_pip_from_an_index(tmp_path: Path) -> None:
    """The page's own commands: a wheel, a fresh environment, and every dependency at its newest version."""

    def pip(*arguments: str | Path) -> None:
        subprocess.run([fresh, "-m", "pip", *arguments], cwd=ROOT, check=True, timeout=600, capture_output=True)

    venv.create(tmp_path / "venv", with_pip=True)
    fresh = tmp_path / "venv/bin/python"
    pip("wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ".")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    pip("install", f"{wheel}[lab]")
    assert (tmp_path / "venv/share/jupyter/labextensions/bpfnb/package.json").exists()
    assert (tmp_path / "venv/bin/jupyter-lab").exists()
    assert run(fresh, "-I", "-c", COUNTED).split()[0] == str(CALLS)
    assert run(fresh, "-I", "-m", "pip", "check").startswith("No broken requirements")
    assert run(fresh.with_name("bpfnb"), "doctor").startswith("Tracing works.\n")

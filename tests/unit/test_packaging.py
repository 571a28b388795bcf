"""What is shipped and what is declared: the wheel, the lock, the conda environment, the version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bpfnb", "magics")
DATA = f"bpfnb-{metadata.version('bpfnb')}.data/data"  # goes below the environment's own folder

# Where conda-forge calls a PyPI package something else.
CONDA_NAMES = {
    "matplotlib": "matplotlib-base",  # conda-forge's "matplotlib" adds Qt
    "tree-sitter": "tree_sitter",
}
# What environment.yml holds beyond pyproject's dependencies: Python itself, and what installs bpfnb there.
CONDA_ONLY = {"python", "pip", "hatchling"}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def constraints() -> dict[str, list[Requirement]]:
    """Name -> its lines in constraints.txt (several where the version depends on Python's)."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Runs a command that sees nothing of ours by PYTHONPATH, and returns what it printed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | environment
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def shipped_files() -> set[str]:
    """Every file below both packages that is no by-product: what git tracks or would, else what lies there."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if git.returncode == 0:
        names = [name for name in git.stdout.split("\0") if name]
    else:  # no git, or not a checkout: a release's tree
        names = [str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*")]
    return {name for name in names if (ROOT / name).is_file() and "__pycache__" not in name}


def installed(name: str) -> str:
    """What a file of the checkout is called in the wheel: ``magics`` is a name that others have, too."""
    if name.startswith("bpfnb/labextension/"):
        return name.replace("bpfnb/labextension", f"{DATA}/share/jupyter/labextensions/bpfnb")
    return f"bpfnb/{name}" if name.split("/")[0] == "magics" else name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment outside the checkout with the built wheel in it; its site-packages.

    The dependencies are those of the running environment, by a .pth line that names the folder: Python does not
    read the .pth files it finds there, so the editable bpfnb cannot stand in for what the wheel lacks.
    """
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home / "venv", with_pip=False)
    python = home / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-index", "--no-deps", wheel, cwd=home)
    (packages,) = (home / "venv" / "lib").glob("python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return packages


class TestWheel:
    def test_holds_every_file_of_both_packages(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        for package in PACKAGES:
            assert f"{installed(package)}/__init__.py" in names
        assert {installed(name) for name in shipped_files()} - names == set()

    def test_holds_nothing_else(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        ours = (f"{DATA}/share/jupyter/labextensions/bpfnb/", f"{DATA}/etc/jupyter/jupyter_config.json")
        top = {name.split("/")[0] for name in names if not name.startswith(ours)}
        assert {name for name in top if not name.endswith(".dist-info")} == {"bpfnb"}
        assert not any(name.startswith("bpfnb/labextension") for name in names)

    def test_jupyterlab_finds_its_extension(self, elsewhere: Path) -> None:
        """Without Node.js: JupyterLab's own list, in an environment that holds the wheel."""
        python = elsewhere.parents[2] / "bin" / "python"
        listed = run(
            python, "-I", "-m", "jupyterlab.labextensions", "list", "--verbose", cwd=elsewhere, PATH="/nowhere"
        )
        place = elsewhere.parents[2] / "share/jupyter/labextensions"
        assert re.search(rf"{place}\n(?:.+\n)*?.*bpfnb v\S+ \S*enabled\S* \S*OK\S* \(python, bpfnb\)", listed), listed

    def test_describes_itself(self, elsewhere: Path, pyproject: dict[str, Any]) -> None:
        (distribution,) = metadata.distributions(path=[str(elsewhere)])
        assert distribution.metadata["Name"] == "bpfnb"
        assert distribution.version == pyproject["project"]["version"]
        assert distribution.metadata["License-Expression"] == "Apache-2.0"
        assert {path.name for path in distribution.files or []} >= {"LICENSE", "METADATA"}
        if (ROOT / "README.md").exists():
            # Once dask has brought importlib_metadata, distributions are its own, which has the text as a header.
            description = distribution.metadata.get_payload() or distribution.metadata["Description"]
            assert description.strip(), 'pyproject.toml lacks readme = "README.md"'

    def test_nbconvert_highlights_c(self, elsewhere: Path, tmp_path: Path) -> None:
        """A plain nbconvert in the environment that holds the wheel."""
        cells = [new_code_cell(text) for text in ("%%bpf x -a syscall:clone=f\n// of C\nint f;", "x = 1  # of Python")]
        document = new_notebook(
            cells=cells, metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        )
        nbformat.write(document, tmp_path / "a.ipynb")
        python = elsewhere.parents[2] / "bin" / "python"
        templates = f"{sys.prefix}/share/jupyter"  # nbconvert's own: it is not in this environment
        command = [python, "-I", "-m", "nbconvert", "--to", "html", "a.ipynb"]
        run(*command, cwd=tmp_path, HOME=str(tmp_path), JUPYTER_PATH=templates)
        html = (tmp_path / "a.html").read_text()
        assert re.search(r'<span class="c1">// of C\s*</span>\s*<span class="kt">int</span>', html)
        assert '<span class="c1"># of Python</span>' in html
        assert 'class="err"' not in html

    def test_has_the_licences_of_what_it_bundles(self, wheel: Path) -> None:
        """Those of every package that the browser's code imports."""
        with zipfile.ZipFile(wheel) as archive:
            licences = archive.read("bpfnb/views/static/LICENSES.txt").decode()
        sources = [path.read_text() for path in (ROOT / "frontend/widgets/src").rglob("*.js")]
        imported = {
            name for text in sources for name in re.findall(r"^import\b.*?[\"']((?:@[\w-]+/)?[\w-]+)", text, re.M)
        }
        assert "uplot" in imported
        for name in imported:
            (licence,) = re.findall(rf"^{name} \d[\d.]*\n\n(.+)", licences, re.M)
            assert licence

    def test_works_outside_the_checkout(self, elsewhere: Path, tmp_path: Path) -> None:
        script = """
import importlib.util, sys
import bpfnb
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "bpfnb")
for kind in ("cell", "line"):
    assert "bpf" in shell.magics_manager.magics[kind], f"%load_ext bpfnb registered no {kind} magic named bpf"
shell.run_line_magic("unload_ext", "bpfnb")
for kind in ("cell", "line"):
    assert "bpf" not in shell.magics_manager.magics[kind], f"%unload_ext bpfnb left the {kind} magic"
assert importlib.util.find_spec("magics") is None, "the wheel takes the name magics"
for name, module in sorted(sys.modules.items()):
    if name.split(".")[0] in ("bpfnb", "magics"):
        print(name, module.__file__)
"""
        python = elsewhere.parents[2] / "bin" / "python"
        printed = run(
            python, "-I", "-c", script, cwd=tmp_path, HOME=str(tmp_path), IPYTHONDIR=str(tmp_path / "ipython")
        )
        modules = dict(line.split(" ", 1) for line in printed.splitlines())
        assert modules.keys() >= {"bpfnb", "bpfnb.magics", "bpfnb.magics.bpf"}
        assert "magics" not in modules
        for name, file in modules.items():
            assert Path(file).is_relative_to(elsewhere), f"{name} came from {file}, not from the wheel"


class TestDeclarations:
    def test_version_has_one_source(self, pyproject: dict[str, Any]) -> None:
        """pyproject.toml states the version; the package, where it tells it, asks its metadata."""
        import bpfnb

        stated = pyproject["project"]["version"]
        assert metadata.version("bpfnb") == stated, "run scripts/setup"
        assert getattr(bpfnb, "__version__", stated) == stated
        assert f'"{stated}"' not in (ROOT / "bpfnb" / "__init__.py").read_text()

    def test_bcc_of_pypi_is_never_asked_for(
        self, pyproject: dict[str, Any], constraints: dict[str, list[Requirement]]
    ) -> None:
        project = pyproject["project"]
        asked = [*project["dependencies"], *(r for group in project["optional-dependencies"].values() for r in group)]
        assert "bcc" not in {canonicalize_name(Requirement(r).name) for r in asked}
        assert "bcc" not in constraints
        assert not re.search(r"^\s*-\s*bcc\b", (ROOT / "environment.yml").read_text(), re.M)

    def test_environment_yml_equals_pyproject(self, pyproject: dict[str, Any]) -> None:
        project = pyproject["project"]
        wanted = {}
        for text in [*project["dependencies"], *project["optional-dependencies"]["lab"]]:
            requirement = Requirement(text)
            assert requirement.marker is None, f"{text}: conda has no markers"
            name = canonicalize_name(requirement.name)
            wanted[CONDA_NAMES.get(name, name)] = requirement.specifier
        environment = yaml.safe_load((ROOT / "environment.yml").read_text())
        found = {}
        for text in environment["dependencies"]:
            assert isinstance(text, str), f"{text}: everything comes from conda-forge, nothing by pip"
            name, specifier = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", text).groups()
            found[name] = Requirement(f"x{specifier}").specifier
        assert environment["channels"] == ["conda-forge"]
        assert found.pop("python") == Requirement(f"x{project['requires-python']}").specifier
        assert {name: s for name, s in found.items() if name not in CONDA_ONLY} == wanted
        assert found.keys() >= CONDA_ONLY - {"python"}

    def test_constraints_cover_pyproject(
        self, pyproject: dict[str, Any], constraints: dict[str, list[Requirement]]
    ) -> None:
        """Every requirement has a pin that satisfies it on each Python; after an edit, run scripts/lock."""
        project = pyproject["project"]
        groups = [project["dependencies"], *project["optional-dependencies"].values()]
        for text in [*pyproject["build-system"]["requires"], *(r for group in groups for r in group)]:
            requirement = Requirement(text)
            pins = constraints.get(canonicalize_name(requirement.name), [])
            for version in ("3.10.13", "3.11.9", "3.12.9", "3.13.9"):
                python = {"python_full_version": version, "python_version": version.rpartition(".")[0]}
                if requirement.marker is not None and not requirement.marker.evaluate(python):
                    continue
                fitting = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(python)]
                assert len(fitting) == 1, f"{text} on Python {version}: {fitting}"
                (pin,) = fitting[0].specifier
                assert pin.operator == "=="
                assert requirement.specifier.contains(pin.version), f"{text}, but constraints.txt has {fitting[0]}"

    def test_constraints_name_no_index(self) -> None:
        text = (ROOT / "constraints.txt").read_text()
        assert not re.search(r"://|^\s*-|@", text, re.M)

    def test_installed_packages_are_the_pinned_ones(self, constraints: dict[str, list[Requirement]]) -> None:
        """Every package of this environment is at its pin, and none came without one."""
        if not Path(sys.prefix, ".bpfnb-setup").exists():
            pytest.skip("this Python is not the .venv that scripts/setup makes")
        wrong = []
        for distribution in metadata.distributions():
            name = canonicalize_name(distribution.metadata["Name"])
            if name in {"bpfnb", "pip", "setuptools"} or not Path(str(distribution.locate_file(""))).is_relative_to(
                sys.prefix
            ):
                continue
            pins = [p for p in constraints.get(name, []) if p.marker is None or p.marker.evaluate()]
            if not any(pin.specifier.contains(distribution.version) for pin in pins):
                wrong.append(f"{name} {distribution.version}, pinned: {[str(p) for p in pins]}")
        assert not wrong

    def test_every_test_lies_in_a_lane(self, pyproject: dict[str, Any]) -> None:
        """testpaths names the lanes one by one, so that the quick ones run first; none may be forgotten."""
        lanes = [ROOT / lane for lane in pyproject["tool"]["pytest"]["ini_options"]["testpaths"]]
        for test in (ROOT / "tests").rglob("test_*.py"):
            assert any(test.is_relative_to(lane) for lane in lanes), f"{test} is in no lane of testpaths"


class TestScripts:
    SCRIPTS = (
        ".ci/run",
        "scripts/setup",
        "scripts/lock",
        "scripts/lab",
        "scripts/check",
        "scripts/test",
        "scripts/demo",
        "scripts/docs",
        "scripts/frontend",
        "scripts/pictures",
    )

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_is_strict_bash_and_executable(self, name: str) -> None:
        path = ROOT / name
        assert os.access(path, os.X_OK)
        text = path.read_text()
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text
        run("bash", "-n", path, cwd=ROOT)

    @pytest.mark.parametrize("name", ["setup", "lock", "lab", "check", "test", "docs", "frontend", "pictures"])
    def test_help_does_nothing_but_help(self, name: str, tmp_path: Path) -> None:
        printed = run(ROOT / "scripts" / name, "--help", cwd=tmp_path)
        assert f"scripts/{name}" in printed
        assert "setup: " not in printed

    def test_setup_again_is_quick(self, tmp_path: Path) -> None:
        if not (ROOT / ".venv" / ".bpfnb-setup").exists():
            pytest.skip("scripts/setup did not make this checkout's .venv")
        setup = ROOT / "scripts" / "setup"
        run(setup, cwd=tmp_path)  # pyproject.toml may have been edited since
        start = time.monotonic()
        printed = run(setup, cwd=tmp_path)
        assert time.monotonic() - start < 2
        assert "installing" not in printed

    def test_setup_refuses_what_it_does_not_know(self, tmp_path: Path) -> None:
        done = subprocess.run([ROOT / "scripts" / "setup", "--tset"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert "--tset" in done.stderr

"""Put the docs site's pages together, as Markdown, and check the site made of them.

The pages are README, docs/, the tutorials, and pages for the Python interface. They lie as they do in the repository,
so that links between them stay right; README is the index. Notebooks are run on the way where this machine can trace
(``--run``), so that they have their results and pictures.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
TEXTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
TEXTS += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))

# What the pages about the Python interface are made of: names, whose docstrings they show.
INTERFACE = {
    "bpfnb": (
        "The functions of `bpfnb`",
        "`bpfnb.trace` and the like are these methods, of the default host.",
        ["bpfnb.hosts.Host"],
    ),
    "session": ("Sessions", "", ["bpfnb.session.Session"]),
    "results": (
        "Results",
        "",
        ["bpfnb.results.output.Output", "bpfnb.results.maps.map.Map", "bpfnb.results.accessor.EventsAccessor"],
    ),
    "errors": ("Errors", "", ["bpfnb.errors"]),
    "testing": ("Testing", "", ["bpfnb.testing.FakeTracer"]),
}
# A block of code by its indentation, in which a %%bpf cell is.
CELL = re.compile(r"(?<=\n\n)((?: {4}.*\n+)*? {4}%%bpf \w+ -.*\n(?: {4}.*\n|\n(?= {4}))*)")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["write", "check"], help="write the pages, or check the site made of them")
    parser.add_argument("folder", type=Path, help="the folder that scripts/docs works in")
    parser.add_argument("--run", action="store_true", help="run the notebooks")
    arguments = parser.parse_args()
    if arguments.step == "write":
        write(arguments.folder, arguments.run)
        return 0
    faults = check(arguments.folder / "site")
    for fault in faults:
        print(f"docs: {fault}", file=sys.stderr)
    return bool(faults)


def write(folder: Path, run: bool) -> None:
    """Put the pages and the configuration together."""
    pages = Pages(folder / "pages")
    for name in TEXTS:
        pages.write(name, (ROOT / name).read_text())
    titles = {path.stem: pages.add_notebook(path, run) for path in NOTEBOOKS}
    table = "\n".join(f"- [{title}]({name}.md)" for name, title in titles.items())
    pages.write("notebooks/index.md", f"# Tutorials\n\n`scripts/lab` opens them in JupyterLab.\n\n{table}\n")
    for page, (title, about, names) in INTERFACE.items():
        pages.write(f"api/{page}.md", f"# {title}\n\n{about}\n\n" + "".join(f"::: {name}\n\n" for name in names))
    shutil.copy(ROOT / "docs/site.css", pages.folder / "docs")
    shutil.copytree(ROOT / "docs/images", pages.folder / "docs/images", dirs_exist_ok=True)
    named = ", ".join(f'"notebooks/{name}.md"' for name in titles)
    settings = (ROOT / "docs/zensical.toml").read_text()
    (folder / "zensical.toml").write_text(settings.replace('"notebooks/*.md"', named).replace("ROOT", str(ROOT)))


# --- checking -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("link", "script", "img", "source", "iframe", "video", "audio", "object"):
            self.loads += [values[name] for name in ("href", "src", "data", "srcset") if name in values]


def check(site: Path) -> list[str]:
    """The links that lead nowhere, and what is loaded from elsewhere, a line each."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    if len(pages) < len(TEXTS) + len(NOTEBOOKS) + len(INTERFACE):
        return [f"{site} has {len(pages)} pages only"]
    faults = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of the place it will be served from
            continue
        name = path.relative_to(site.resolve())
        faults += [f"{name} loads {url} from elsewhere" for url in page.loads if re.match(r"(\w+:)?//", url)]
        for url in [*page.links, *page.loads]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.exists():
                faults.append(f"{name} links to {url}, which is not there")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].places:
                faults.append(f"{name} links to {url}: that page has no such place")
    for path in site.rglob("*.css"):
        faults += [
            f"{path.name} loads {url} from elsewhere"
            for url in re.findall(r"(?:url\(|@import )['\"]?((?:https?:)?//[^'\")]+)", path.read_text())
        ]
    return list(dict.fromkeys(faults))


# --- writing ------------------------------------------------------------------------------------------------------


class Pages:
    """The folder of pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str) -> None:
        path = self.folder / ("index.md" if name == "README.md" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = CELL.sub(lambda cell: f"```c\n{textwrap.dedent(cell[1])}```\n", text)
        path.write_text(LINK.sub(lambda link: _link(name, link), text))

    def add_notebook(self, path: Path, run: bool) -> str:
        """Write a notebook as a page; its title."""
        document = nbformat.read(path, as_version=4)
        if run:
            print(f"docs: running {path.name}", flush=True)
            client = NotebookClient(
                document, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
            )
            client.execute()
        config = Config({"HighlightMagicsPreprocessor": {"enabled": True, "languages": {"%%bpf": "c"}}})
        text, resources = MarkdownExporter(config=config).from_notebook_node(
            document, {"output_files_dir": f"{path.stem}_files"}
        )
        for name, data in resources["outputs"].items():
            picture = self.folder / "notebooks" / name
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(data)
        self.write(f"notebooks/{path.stem}.md", text)
        return next(line[2:] for line in text.splitlines() if line.startswith("# "))


def _link(page: str, link: re.Match[str]) -> str:
    """A link as the site has it. Of a file that is no page of the site, its words."""
    picture, words, target = link.groups()
    place, hash_, anchor = target.partition("#")
    if re.match(r"\w+:", target) or not place:
        return link[0]
    there = posixpath.normpath(posixpath.join(posixpath.dirname(page), place))
    if there == "README.md":
        new = "index.md"
    elif there == "notebooks":
        new = "notebooks/index.md"
    elif there.endswith(".ipynb"):
        new = there.removesuffix("ipynb") + "md"
    elif there in TEXTS or there.startswith(("docs/images/", "notebooks/", "api/")):
        new = there
    else:
        return words
    return f"{picture}[{words}]({posixpath.relpath(new, posixpath.dirname(page) or '.')}{hash_}{anchor})"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CellExecutionError as error:
        sys.exit(f"docs: a notebook failed: {error}")

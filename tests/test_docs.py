"""The documents say what is so: examples run, tables are fresh, links lead somewhere."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from entrokern import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])
TUTORIAL = ROOT / "docs" / "tutorial.md"  # test_tutorial.py runs it, shell and all, in a folder of its own
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """The names that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL], ids=name)
def test_examples_run_as_printed(page: Path) -> None:
    """The Python blocks of a page are one session; what is not code is blanked, so line numbers hold."""
    text = page.read_text(encoding="utf-8")
    kept = ["\n"] * (text.count("\n") + 1)
    for block in FENCED.finditer(text):
        if block[1] == "python":
            first = text.count("\n", 0, block.start(2))
            for i, line in enumerate(block[2].splitlines(keepends=True)):
                kept[first + i] = line
    test = doctest.DocTestParser().get_doctest("".join(kept), {}, name(page), str(page), 0)
    if not test.examples:
        pytest.skip("no examples")
    said: list[str] = []
    with np.printoptions():  # an example may change them; the next page does not see it
        failed = doctest.DocTestRunner().run(test, out=said.append).failed
    assert not failed, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken, f"{name(page)} links to what is not there: {broken}"


def test_commands_are_understood() -> None:
    """The command lines of README.md, as far as parsing goes."""
    blocks = [b[2] for b in FENCED.finditer((ROOT / "README.md").read_text(encoding="utf-8")) if b[1] == "sh"]
    lines = [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]
    commands = [line for line in lines if line and line[0] == "entrokern"]
    assert commands
    for _, *arguments in commands:
        cli._parser().parse_args(arguments)
    scripts = [line[1] for line in lines if line and line[0] == "bash"]
    assert scripts
    assert all((ROOT / script).exists() for script in scripts)


def test_environment_variables_are_those_of_the_code() -> None:
    """README.md names every variable that the package reads, and no other."""
    name = re.compile(r"ENTROKERN_[A-Z_]+")
    code = {v for path in (ROOT / "src").rglob("*.py") for v in name.findall(path.read_text(encoding="utf-8"))}
    assert set(name.findall((ROOT / "README.md").read_text(encoding="utf-8"))) == code


def test_tables_are_fresh() -> None:
    for guest in ("dask", "torch", "jax", "pandas", "array_api_strict"):
        pytest.importorskip(guest)  # docs/backends.md tells what each takes
    command = [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

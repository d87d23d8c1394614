"""docs/tutorial.md is what happens: its Python and its shell, in the page's order, in one empty folder."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from test_docs import FENCED, ROOT

for needed in ("sklearn", "pyarrow", "dask.array", "distributed"):
    pytest.importorskip(needed)

# What a cluster's own machinery has to say when it goes down.
pytestmark = pytest.mark.filterwarnings("default")

PAGE = ROOT / "docs" / "tutorial.md"
TEXT = PAGE.read_text(encoding="utf-8")


def shell(script: str) -> None:
    """Run a block of the page, and say what it says."""
    done = subprocess.run(
        ["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120
    )
    sys.stdout.write(done.stdout)
    if done.returncode:  # a code that is meant, the page echoes itself
        sys.stdout.write(f"exit code {done.returncode}\n")


def examples(text: str) -> Iterator[doctest.Example]:
    """The page as one doctest: a block ```sh is an example too, and the block ```text after it what it prints."""
    blocks = [*FENCED.finditer(text), None]
    for block, following in pairwise(blocks):
        first = text.count("\n", 0, block.start(2))
        if block[1] == "python":
            for example in doctest.DocTestParser().get_examples(block[2]):
                example.lineno += first
                yield example
        elif block[1] == "sh":
            printed = following[2] if following and following[1] == "text" else ""
            yield doctest.Example(f"shell({block[2]!r})\n", printed.replace("\n\n", "\n<BLANKLINE>\n"), lineno=first)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, made the current one, where `entrokern` is the package under test."""
    command = tmp_path / "bin" / "entrokern"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m entrokern "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    # The one under test also for the commands and the workers, however it was found here.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path or os.getcwd() for path in sys.path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_the_page_runs_as_printed(folder: Path) -> None:
    names = {"__name__": "__main__", "shell": shell}  # as at a prompt: what is defined there is sent to workers whole
    page = doctest.DocTest([*examples(TEXT)], names, PAGE.name, str(PAGE), 0, None)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    with np.printoptions():
        failed = runner.run(page, out=said.append).failed
    assert not failed, "".join(said)


def test_numbers_in_the_text_are_in_a_block() -> None:
    """No figure is typed in: each that the text names, a block has, and blocks are run."""
    number = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|^#+ .*$", "", FENCED.sub("", TEXT), flags=re.MULTILINE)
    shown = {found for block in FENCED.finditer(TEXT) for found in number.findall(block[2])}
    strange = sorted({*number.findall(prose)} - shown)
    assert not strange, f"no block has the numbers {strange}"

"""Fixtures for the tests of the command line: arrays in files, and ways to run it."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from entrokern import cli

N, K = 1000, 7


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder, made the current one, with arrays in files; the arrays as attributes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, K)).astype(np.float32)
    p, q = rng.dirichlet(np.ones(K), (2, N))
    arrays = {
        "x": x, "y": rng.integers(0, K, N), "p": p, "q": q, "r": q[0], "t": rng.integers(0, 2, (N, K)),
        "z": x[:, 0], "zt": rng.integers(0, 2, N), "w": rng.uniform(0.5, 2, K),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(name, array)
    return SimpleNamespace(**arrays)


def not_json(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


@pytest.fixture
def score(capsys):
    """Run `entrokern score … --json` and return the facts."""

    def run(*args: str, block_rows: int | None = 64):
        blocks = [] if block_rows is None else ["--block-rows", str(block_rows)]
        code = cli.main(["score", *args, "--json", *blocks])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return json.loads(out, parse_constant=not_json)

    return run


@pytest.fixture
def complaint(capsys):
    """Run the command line and return the one line on stderr; the exit code must be 2."""

    def run(*args: str) -> str:
        code = cli.main(args)
        out, err = capsys.readouterr()
        assert code == 2
        assert out == ""
        assert err.startswith("entrokern: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err[len("entrokern: ") : -1]

    return run


@pytest.fixture
def peak_mb():
    """Run a command in a process of its own and return its peak memory in MB; without one, that of loading Numba."""

    def run(*args: str) -> float:
        code = (
            "import resource, sys, numba; from entrokern.cli import main; "
            "code = main(sys.argv[1:]) if sys.argv[1:] else 0; "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, file=sys.stderr); sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        return float(done.stderr)

    return run

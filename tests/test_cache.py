"""Compiled kernels on disk: kept, found again, never stale, never in the way."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import entrokern as ek

CALL = """
import numpy as np, entrokern as ek
print(repr(float(ek.information(np.array([0.5])).sum())))
from entrokern.cpu.compile import KERNELS
kernel = KERNELS["information_rows"]
print(sum(kernel.stats.cache_hits.values()))
"""


def run(code: str, **environment: str | None) -> list[str]:
    """Run `code` in a fresh process; a variable given as None is taken away."""
    env = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_second_process_loads_what_the_first_compiled(tmp_path: Path) -> None:
    first = run(CALL, ENTROKERN_CACHE_DIR=str(tmp_path))
    files = sorted(tmp_path.rglob("*.kernel"))
    assert len(files) == 1
    assert files[0].parent.name.startswith(f"{ek.__version__}-")
    second = run(CALL, ENTROKERN_CACHE_DIR=str(tmp_path))
    assert first == ["0.6931471805599453", "0"]
    assert second == ["0.6931471805599453", "1"]
    assert sorted(tmp_path.rglob("*.kernel")) == files


def test_a_damaged_file_is_compiled_again(tmp_path: Path) -> None:
    run(CALL, ENTROKERN_CACHE_DIR=str(tmp_path))
    (file,) = tmp_path.rglob("*.kernel")
    for damage in (b"", b"nonsense", file.read_bytes()[:1000]):
        file.write_bytes(damage)
        assert run(CALL, ENTROKERN_CACHE_DIR=str(tmp_path)) == ["0.6931471805599453", "0"]


def test_a_changed_formula_is_seen(tmp_path: Path) -> None:
    """Numba's own key does not see a function in another file; the folder's name does."""
    package = tmp_path / "site" / "entrokern"
    shutil.copytree(Path(ek.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"ENTROKERN_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(package.parent)}
    call = "import entrokern as ek; print(ek.__file__, float(ek.kl_estimate([0.5], [0.0], estimator='k3')))"
    file, before = run(call, **environment)
    assert Path(file).parent == package
    formulas = package / "_formulas.py"
    source = formulas.read_text()
    series = "return c0 + d * (c1 + d * (c2"
    assert source.count(series) == 1
    formulas.write_text(source.replace(series, series.replace("c0", "28.0 + c0")))
    _, after = run(call, **environment)
    assert float(after) == pytest.approx(float(before) + 28.0 * 0.5**2)


def test_without_a_home_it_compiles_again(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    # Root may write anywhere: a file in the folder's place stops it, too.
    blocked = tmp_path / "file"
    blocked.write_text("")
    for folder in (closed / "x", blocked / "x"):
        value, _ = run(CALL, ENTROKERN_CACHE_DIR=str(folder))
        assert value == "0.6931471805599453"
    value, _ = run(CALL, ENTROKERN_CACHE_DIR=None, XDG_CACHE_HOME=None, HOME=str(blocked))
    assert value == "0.6931471805599453"
    closed.chmod(stat.S_IRWXU)


def test_show_info_says_where(tmp_path: Path) -> None:
    code = "import entrokern as ek; ek.show_info()"
    said = run(code, ENTROKERN_CACHE_DIR=str(tmp_path))
    assert any(word.startswith(str(tmp_path)) for word in said)
    (tmp_path / "file").write_text("")
    assert "none:" in run(code, ENTROKERN_CACHE_DIR=str(tmp_path / "file" / "x"))


def test_warmup_compiles_what_the_calls_need(tmp_path: Path) -> None:
    code = """
import numpy as np, entrokern as ek
said = []
ek.warmup(["logsumexp", "softmax"], "float32", progress=lambda *args: said.append(args))
assert [s[:2] for s in said] == [(0, 2), (1, 2), (2, 2)], said
from entrokern.cpu.compile import KERNELS
count = lambda: sum(len(kernel.signatures) for kernel in KERNELS.values())
before = count()
x = np.zeros((5, 1000), np.float32)
ek.logsumexp(x), ek.log_softmax(x), ek.softmax(x[:, :7])
print(count() - before)
"""
    assert run(code, ENTROKERN_CACHE_DIR=str(tmp_path)) == ["0"]


@pytest.mark.parametrize(("functions", "dtypes"), [("nonsense", "float32"), ("softmax", "int8")])
def test_warmup_refuses(functions: str, dtypes: str) -> None:
    with pytest.raises(ValueError, match="choose one of"):
        ek.warmup(functions, dtypes)

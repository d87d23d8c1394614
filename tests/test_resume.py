"""A run that is interrupted leaves no half file, and what is done is gone on with to the same bits."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from entrokern import _scoring, cli
from entrokern.files import work

pytest_plugins = ["cli_fixtures"]
N = 1000  # rows of the files
ASKED = ["x.npy", "y.npy", "--outputs", "loss,rank", "--block-rows", "16"]


def folder(out: str) -> Path:
    return Path(f".{out}.entrokern")


def many(n: int) -> None:
    """Files of so many rows that a run in small blocks takes a while."""
    rng = np.random.default_rng(1)
    np.save("x", rng.normal(size=(n, 3)).astype(np.float32))
    np.save("y", rng.integers(0, 3, n))


def started(*args: str, largest: int = -1, pause: float = 0) -> subprocess.Popen[str]:
    """A run of its own, in which no file can get larger than so many bytes, and each block takes a while longer."""
    code = (
        "import resource, signal, sys, time; from entrokern import _scoring; from entrokern.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs begin without it
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))\n"
        f"run = _scoring._Job.run; _scoring._Job.run = lambda *args: (time.sleep({pause}), run(*args))[1]\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "score", *ASKED, *args, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def facts_of(text: str) -> dict:
    """A summary but for the time it took; NaN equals itself as text."""
    return json.loads(text, parse_constant=str) | {"seconds": 0}


def journaled(path: Path) -> int:
    """When the journal was written last; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def interrupted(monkeypatch, block: int, error: type[BaseException] = KeyboardInterrupt, what: str = "run") -> None:
    """Let the work on a block end with an error, once."""
    done = getattr(_scoring._Job, what)

    def failing(job, *args):
        if (args[0] if what == "run" else args[0].start) == 16 * (block - 1):
            raise error
        return done(job, *args)

    monkeypatch.setattr(_scoring._Job, what, failing)


# The same bits


@pytest.mark.parametrize(("kills", "n"), [(4, 100_000), pytest.param(20, 400_000, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_gives_the_same_file(tmp_path, monkeypatch, kills, n):
    monkeypatch.chdir(tmp_path)
    many(n)
    out, err = started("--out", "whole.npz").communicate()
    assert err == ""
    expected = facts_of(out)
    rng = random.Random(kills)
    killed = 0
    for _ in range(kills):
        before = journaled(folder("o.npz") / "journal")
        process = started("--out", "o.npz", "--resume")
        while journaled(folder("o.npz") / "journal") == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        if process.returncode == 0:  # it was faster: the next begins anew
            os.unlink("o.npz")
        else:
            killed += 1
            assert not Path("o.npz").exists()
    assert killed >= kills // 2
    out, err = started("--out", "o.npz", "--resume").communicate()
    assert err == ""
    assert facts_of(out) == expected
    assert Path("o.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert sorted(os.listdir()) == ["o.npz", "whole.npz", "x.npy", "y.npy"]


@pytest.mark.parametrize("out", ["o.npz", "o.csv", "o.parquet", "o.arrow"])
@pytest.mark.parametrize("options", [[], ["--bad-rows", "skip"], ["--class-weight", "w.npy"]])
def test_every_format_is_resumed(files, capsys, monkeypatch, out, options):
    pytest.importorskip("pyarrow")
    files.x[[3, 500, 900], 1] = np.nan
    np.save("x", files.x)
    assert cli.main(["score", *ASKED, *options, "--out", f"whole{out}", "--json"]) == 0
    expected = facts_of(capsys.readouterr().out)
    for block in (5, 34):
        with monkeypatch.context() as patch:
            interrupted(patch, block)
            assert cli.main(["score", *ASKED, *options, "--out", out, "--resume"]) == 130
        done = 16 * (block - 1)
        assert capsys.readouterr().err == f"entrokern: interrupted; run again with --resume to continue at row {done}\n"
    assert cli.main(["score", *ASKED, *options, "--out", out, "--resume", "--json"]) == 0
    assert facts_of(capsys.readouterr().out) == expected
    assert Path(out).read_bytes() == Path(f"whole{out}").read_bytes()
    assert not folder(out).exists()


def test_an_interrupt_while_rows_are_counted_goes_back_to_the_journal(files, capsys, monkeypatch):
    monkeypatch.setattr(work, "SECONDS", 0)
    monkeypatch.setattr(work, "SHARE", 0)
    with monkeypatch.context() as patch:
        interrupted(patch, 5, what="count")
        assert cli.main(["score", *ASKED, "--out", "o.npz"]) == 130
    assert capsys.readouterr().err.endswith("--resume to continue at row 64\n")
    assert cli.main(["score", *ASKED, "--out", "o.npz", "--resume"]) == 0
    assert cli.main(["score", *ASKED, "--out", "whole.npz"]) == 0
    assert Path("o.npz").read_bytes() == Path("whole.npz").read_bytes()


def test_nothing_to_resume_begins_at_the_beginning(files, score, complaint):
    score(*ASKED[:4], "--out", "o.npz", "--resume")
    assert len(np.load("o.npz")["loss"]) == N
    assert complaint("score", "x.npy", "y.npy", "--resume") == "--resume needs --out FILE, whose work goes on"


# What cannot be gone on with


@pytest.fixture
def left(files, capsys, monkeypatch):
    """The work of a run that was interrupted."""
    with monkeypatch.context() as patch:
        interrupted(patch, 5)
        assert cli.main(["score", *ASKED, "--out", "o.npz"]) == 130
    capsys.readouterr()
    return folder("o.npz")


def test_another_request_is_refused(left, files, complaint, capsys):
    again = ["score", *ASKED, "--out", "o.npz"]
    assert "differs in --base, --hardest; ask for the same" in complaint(
        *again, "--resume", "--base", "2", "--hardest", "1"
    )
    np.save("x", files.x + 1)
    assert f"differs in {Path('x.npy').resolve()}; " in complaint(*again, "--resume")
    assert (left / "journal").exists()
    assert cli.main(again) == 0  # without --resume it begins anew
    np.testing.assert_array_equal(np.load("o.npz")["rank"].shape, N)
    assert not left.exists()


def test_operands_that_change_places_are_another_request(files, complaint, capsys, monkeypatch):
    asked = ["--loss", "kl", "--form", "probs", "--block-rows", "16", "--out", "o.npy"]
    with monkeypatch.context() as patch:
        interrupted(patch, 5)
        assert cli.main(["score", "p.npy", "q.npy", *asked]) == 130
    capsys.readouterr()
    assert "differs in X, Y; " in complaint("score", "q.npy", "p.npy", *asked, "--resume")


class Command:
    """What runs something when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("damage", ["journal", "short", "harm"])
def test_a_damaged_work_folder_is_refused(left, complaint, damage):
    if damage == "journal":
        (left / "journal").write_bytes(b"not a journal")
    elif damage == "harm":
        (left / "journal").write_bytes(pickle.dumps(Command()))
    else:
        os.truncate(left / "loss", 10)
    message = complaint("score", *ASKED, "--out", "o.npz", "--resume")
    assert message.endswith("is damaged; leave --resume out to begin anew")
    assert not Path("harm").exists()


def test_two_runs_do_not_write_one_file(files, complaint, capsys):
    again = ["score", *ASKED, "--out", "o.npz"]
    with work.working("o.npz", ("loss",), (N,), {}, None, resume=False) as running:
        message = complaint(*again)
        assert message == "another run is writing o.npz; wait for it, or write another file"
        running.add(N, {"loss": np.zeros(N)}, lambda: None)
    assert list(np.load("o.npz")) == ["loss"]
    assert cli.main(again) == 0


def test_an_input_that_changes_is_refused(files, complaint, monkeypatch):
    run = _scoring._Job.run

    def touching(job, start, arrays):
        if start == 32:
            os.utime("y.npy", (0, 0))
        return run(job, start, arrays)

    monkeypatch.setattr(_scoring._Job, "run", touching)
    message = complaint("score", *ASKED, "--out", "o.npz")
    assert message == f"{Path('y.npy').resolve()} changed while it was read"
    assert not folder("o.npz").exists()
    assert not Path("o.npz").exists()


# What ends a run from outside


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_end_it_cleanly(tmp_path, monkeypatch, sent, code, word):
    monkeypatch.chdir(tmp_path)
    many(100_000)
    process = started("--out", "o.npz", pause=0.001)
    while not (folder("o.npz") / "journal").exists():
        time.sleep(0.001)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.startswith(f"entrokern: {word}; run again with --resume to continue at row ")
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == [".o.npz.entrokern", "x.npy", "y.npy"]
    assert not list(folder("o.npz").glob("*part*"))


@pytest.mark.parametrize(
    ("limit", "row"),
    # While the rows are computed; while the file is made of them. The journal, of up to 65536 losses, is smaller.
    [(1_800_000, "224992"), (3_000_000, "300000")],
)
def test_a_full_disk_keeps_what_is_done(tmp_path, monkeypatch, limit, row):
    monkeypatch.chdir(tmp_path)
    many(300_000)
    limited = started("--out", "o.npz", largest=limit)
    _, err = limited.communicate()
    assert limited.returncode == 2
    assert err.startswith("entrokern: cannot write o.npz: File too large; run again with --resume to continue at row ")
    assert re.search(f"row {row}$", err)
    assert not Path("o.npz").exists()
    for args in (["--out", "o.npz", "--resume"], ["--out", "whole.npz"]):
        assert started(*args).communicate()[1] == ""
    assert Path("o.npz").read_bytes() == Path("whole.npz").read_bytes()


def test_a_disk_that_is_full_from_the_start_leaves_nothing(files, complaint, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(work.os, "write", full)
    assert complaint("score", *ASKED, "--out", "o.npz") == "cannot write o.npz: No space left on device"
    assert not folder("o.npz").exists()


def test_a_folder_that_cannot_be_written_is_named(files, complaint):
    assert complaint("score", *ASKED, "--out", "/proc/o.npz").startswith("cannot write /proc/o.npz: ")

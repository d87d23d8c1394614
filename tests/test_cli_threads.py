"""Files that several threads read and score: the same results as of one, in order, in bounded memory, ended cleanly."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import entrokern as ek
from entrokern import _scoring, _threads, cli
from entrokern.files import pipeline

pytest_plugins = ["cli_fixtures"]
N = 1000  # rows of the files
THREADS = [1, 2, 5]


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """What --threads says ends with the test."""
    monkeypatch.setattr(_threads, "_chosen", None)


@pytest.fixture
def keyed(files):
    """Files of every kind whose elements lie in place, with rows that do not count and bad ones."""
    safetensors = pytest.importorskip("safetensors.numpy")
    pa = pytest.importorskip("pyarrow")
    files.x[[3, 500], 1] = np.nan
    files.y[[8, 900]] = -1
    np.save("x", files.x)
    np.save("y", files.y)
    np.save("g", np.arange(N) % 6)
    np.save("f", np.asfortranarray(files.x))
    safetensors.save_file({"x": files.x}, "x.safetensors")
    for i, part in enumerate(np.split(files.x, [130, 131, 700])):
        os.makedirs("parts", exist_ok=True)
        np.save(f"parts/{i}", part)
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(files.x.ravel(), 7)})
    with pa.ipc.new_file("x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=90)
    return files


def watched(monkeypatch, before=lambda start: None):
    """Where and when blocks are scored: their starts with their threads, and the most at once."""
    run, lock = _scoring._Job.run, threading.Lock()
    seen: dict[int, str] = {}
    running, most = 0, [0]

    def watching(job, start, arrays):
        nonlocal running
        with lock:
            running += 1
            most[0] = max(most[0], running)
            seen[start] = threading.current_thread().name
        try:
            before(start)
            return run(job, start, arrays)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(_scoring._Job, "run", watching)
    return seen, most


def left_open() -> list[str]:
    """The arrays that this process has open."""
    fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sorted(name for fd in fds if os.path.exists(fd) and (name := os.readlink(fd)).endswith(".npy"))


# The same results


@pytest.mark.parametrize("x", ["x.npy", "f.npy", "x.safetensors", "parts", "x.arrow"])
def test_results_do_not_depend_on_threads(keyed, score, x):
    asked = [x, "y.npy", "--ignore-index", "-1", "--bad-rows", "nan", "--by", "g.npy", "--outputs", "loss,rank,entropy"]
    expected = ek.score(keyed.x, keyed.y, outputs=("loss", "rank", "entropy"), ignore_index=-1)
    fine = np.ones(N, bool)
    fine[[3, 500]] = False
    files = set()
    for block_rows in (1, 37, 333, None):
        facts = []
        for threads in THREADS:
            found = score(*asked, "--out", "o.npz", "--threads", str(threads), block_rows=block_rows)
            facts.append(json.dumps(found | {"seconds": 0}))
            files.add(Path("o.npz").read_bytes())
        assert len(set(facts)) == 1
        assert (found["rows"], found["ignored"], found["bad_rows"]) == (N, 2, {"NaN": 2})
    assert len(files) == 1
    out = np.load("o.npz")
    for name in ("loss", "rank", "entropy"):
        np.testing.assert_array_equal(out[name][fine], getattr(expected, name)[fine])


def test_distributions_and_classes_apart(files, score, monkeypatch):
    np.save("pt", np.ascontiguousarray(files.p.T.reshape(7, 20, 50)))
    np.save("qt", np.ascontiguousarray(files.q.T.reshape(7, 20, 50)))
    outs = []
    for threads, block_rows in itertools.product(THREADS, (7, 130, None)):
        for names, axis in ((("p.npy", "q.npy"), "-1"), (("pt.npy", "qt.npy"), "0")):
            asked = [*names, "--loss", "kl", "--form", "probs", "--axis", axis, "--threads", str(threads)]
            score(*asked, "--out", "o.npy", block_rows=block_rows)
            outs.append(np.load("o.npy").reshape(-1))
    expected = ek.kl_divergence(files.p, files.q)
    for out in outs[::2]:
        np.testing.assert_array_equal(out, expected)
    for out in outs[1::2]:
        np.testing.assert_array_equal(out, outs[1])
        np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_as_many_threads_as_chosen_score_at_once(files, score, monkeypatch):
    seen, most = watched(monkeypatch, lambda start: time.sleep(0.01))
    score("x.npy", "y.npy", "--threads", "3")
    assert most == [3]
    assert len(set(seen.values())) == 3
    assert threading.main_thread().name not in seen.values()
    assert sorted(seen) == list(range(0, N, 64))


def test_what_is_read_in_order_is_scored_where_it_arrives(files, score, monkeypatch):
    np.savez("d", x=files.x, y=files.y)
    seen, most = watched(monkeypatch)
    score("d.npz", "--threads", "3")
    assert most == [1]
    assert set(seen.values()) == {threading.main_thread().name}


# In order


def test_the_lowest_bad_row_is_named(files, complaint, monkeypatch):
    files.y[[200, 300, 700]] = 7
    np.save("y", files.y)
    watched(monkeypatch, lambda start: time.sleep(0.1 if start == 192 else 0))  # the others are found before
    asked = ["score", "x.npy", "y.npy", "--block-rows", "64", "--threads", "5", "--out", "o.npy"]
    for _ in range(3):
        assert complaint(*asked).startswith("y.npy: label 7 of row 200 is out of range")
    assert sorted(os.listdir()) == sorted(f"{name}.npy" for name in vars(files))


def test_results_wait_for_their_turn(files, score, monkeypatch):
    """However long one block takes, only a few are begun beyond it, and they are counted after it."""
    counted, ahead = [], []
    count = _scoring._Job.count

    def counting(job, scored):
        counted.append(scored.start)
        time.sleep(0.002)
        count(job, scored)

    def slow(start):
        ahead.append(start // 16 - len(counted))
        time.sleep(0.05 if start in (160, 480) else 0)

    monkeypatch.setattr(_scoring._Job, "count", counting)
    watched(monkeypatch, slow)
    score("x.npy", "y.npy", "--threads", "3", block_rows=16)
    assert counted == list(range(0, N, 16))
    assert 3 <= max(ahead) <= 3 + pipeline.AT_HAND


@pytest.mark.parametrize(("blocks", "expected"), [(5, 5), (3.5, 3), (1.9, 1), (0.1, 1)])
def test_buffers_are_bounded(files, score, monkeypatch, blocks, expected):
    monkeypatch.setattr(pipeline, "HELD_BYTES", int(blocks * 64 * (7 * 4 + 8)))
    _, most = watched(monkeypatch, lambda start: time.sleep(0.01))
    score("x.npy", "y.npy", "--threads", "5")
    assert most == [expected]


# The end


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["run", "count"])
def test_an_error_leaves_nothing_running(files, capsys, monkeypatch, error, where):
    threads, opened = set(threading.enumerate()), left_open()
    begun, ended = [], []
    run, done = _scoring._Job.run, getattr(_scoring._Job, where)

    def running(job, start, arrays):
        begun.append(start)
        time.sleep(0.01)
        scored = run(job, start, arrays)
        ended.append(start)
        return scored

    def failing(job, *args):
        if (args[0] if where == "run" else args[0].start) == 320:
            raise error
        return running(job, *args) if where == "run" else done(job, *args)

    monkeypatch.setattr(_scoring._Job, "run", running)
    monkeypatch.setattr(_scoring._Job, where, failing)
    asked = ["score", "x.npy", "y.npy", "--block-rows", "64", "--threads", "4", "--out", "o.npy"]
    if error is KeyboardInterrupt:
        assert cli.main(asked) == 130
        assert capsys.readouterr().err.startswith("entrokern: interrupted")
    else:
        with pytest.raises(RuntimeError):
            cli.main(asked)
    assert set(threading.enumerate()) == threads
    assert sorted(begun) == sorted(ended)  # what had begun was waited for
    assert max(begun) <= 320 + 64 * (4 + pipeline.AT_HAND)
    assert left_open() == opened
    assert not Path("o.npy").exists()


def test_one_that_is_not_read_to_its_end_stops(files):
    array = _scoring.open_array("x.npy", "x")
    array.lay_out(1)
    _threads.choose(3)
    before, opened = set(threading.enumerate()), left_open()
    begun, gate = [], threading.Event()

    def work(start, arrays):
        begun.append(start)
        names: list[str] = []
        _threads.run_chunks(4, lambda _: names.append(threading.current_thread().name))
        assert names == [threading.current_thread().name] * 4  # a kernel has no thread but this one
        if start >= 40:
            gate.wait()
        return arrays[0].sum(dtype=float)

    found = pipeline.computed([array], pipeline.spans([array], 10), work)
    for start, stop, total in itertools.islice(found, 4):
        assert total == files.x[start:stop].sum(dtype=float)
    deadline = time.monotonic() + 10
    while len(begun) < 7 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(threading.enumerate()) == len(before) + 3
    threading.Timer(0.05, gate.set).start()
    found.close()
    assert sorted(begun) == list(range(0, 70, 10))  # of those at hand only the ones that had begun
    assert left_open() == opened
    array.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("entrokern-score")]

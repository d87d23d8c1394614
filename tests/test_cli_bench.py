"""`entrokern bench`: the short table of this machine."""

from __future__ import annotations

import re

import pytest

from entrokern import _speed, _threads, cli

pytest_plugins = ["cli_fixtures"]


def test_every_work_and_k_has_its_line(capsys, monkeypatch):
    monkeypatch.setattr(_speed, "CLASSES", (3, 40))
    assert cli.main(["bench", "--megabytes", "0.02"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "0.02 MB" in out
    for work in _speed.WORKS:
        lines = re.findall(
            rf"^  {re.escape(work.name)} +(\d+) +[\d.]+ ms +[\d.]+ +\d+ % +[\d.]+ × +(\S+) +\S+$", out, re.M
        )
        assert [k for k, _ in lines] == ["3", "40"]
        assert all(float(error) < 1e-5 for _, error in lines)


def test_progress_is_told(monkeypatch):
    monkeypatch.setattr(_speed, "CLASSES", (3,))
    told = []
    list(_speed.bench(0.01, lambda *facts: told.append(facts)))
    assert [(done, total) for done, total, _ in told] == [(i, len(_speed.WORKS)) for i in range(len(_speed.WORKS))]
    assert told[0][2] == "cross_entropy, k = 3"


def test_threads_can_be_chosen(capsys, monkeypatch):
    monkeypatch.setattr(_speed, "CLASSES", (3,))
    monkeypatch.setattr(_threads, "_chosen", None)
    assert cli.main(["bench", "--megabytes", "0.01", "--threads", "1"]) == 0
    assert "threads: 1" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "many"])
def test_a_size_must_be_one(complaint, size):
    assert "invalid size value" in complaint("bench", "--megabytes", size)

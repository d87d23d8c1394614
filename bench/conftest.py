"""Options of `python -m pytest bench`; results are kept without the host's name."""

from __future__ import annotations

from typing import Any

import pytest

import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--megabytes", type=float, default=64.0, help="of the operands in bench/ (64)")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine.describe())

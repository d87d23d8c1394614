"""What all tests share: the backends, the hypothesis profile and the table of worst errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

import device  # before the tests, which keep the functions that it wraps
import entrokern as ek
from entrokern._dispatch import BACKENDS

# The same examples in every run (a failure can be repeated), and no time limit per example: the
# first one of each kind compiles a kernel. `backend` is reset by its own context, so one fixture
# for all examples of a test is what is wanted.
hypothesis.settings.register_profile(
    "entrokern",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("entrokern")

WORST = pytest.StashKey[dict[tuple[str, str], dict[str, tuple[float, str]]]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what runs on the CUDA backend, and skip it where that cannot run."""
    absent = device.absent()
    for item in items:
        called = getattr(item, "callspec", None)
        backend = called.params.get("backend") if called else None
        if backend == "cuda" or item.path.name.startswith("test_cuda"):
            item.add_marker(pytest.mark.gpu)
            if absent:
                item.add_marker(pytest.mark.skip(reason=absent))


@pytest.fixture(params=list(ek.backends()))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn; the test runs on it."""
    with ek.use_backend(request.param):
        yield request.param


@pytest.fixture(params=[name for name, entry in BACKENDS.items() if entry.library == "numpy"])
def host_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend of NumPy arrays: for what is different on a device, where nothing waits for an answer."""
    with ek.use_backend(request.param):
        yield request.param


@pytest.fixture
def record_error(request: pytest.FixtureRequest) -> Callable[[str, str, str, float], None]:
    """Remember the worst error of an output, in units of its bound, for the table at the end."""
    worst = request.config.stash.setdefault(WORST, {})
    name = request.node.name

    def record(output: str, backend: str, dtype: str, error: float) -> None:
        cells = worst.setdefault((output, backend), {})
        if error >= cells.get(dtype, (-1.0, ""))[0]:
            cells[dtype] = (float(error), name)

    return record


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of several processes (pytest-xdist), tell the first one the worst errors."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["worst"] = list(session.config.stash.get(WORST, {}).items())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the worst errors of a process that ends."""
    worst = node.config.stash.setdefault(WORST, {})
    for key, cells in getattr(node, "workeroutput", {}).get("worst", ()):
        mine = worst.setdefault(key, {})
        mine.update({dtype: max(cell, mine.get(dtype, cell)) for dtype, cell in cells.items()})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    worst = config.stash.get(WORST, {})
    if not worst:
        return
    dtypes = sorted({dtype for cells in worst.values() for dtype in cells})
    write = terminalreporter.write_line
    terminalreporter.section("worst error in units of the bound (contract: at most 1)")
    write(f"{'output':34} {'backend':10}" + "".join(f"{dtype:>10}" for dtype in dtypes))
    for (output, backend), cells in sorted(worst.items()):
        values = (f"{cells[dtype][0]:10.3f}" if dtype in cells else f"{'-':>10}" for dtype in dtypes)
        write(f"{output:34} {backend:10}" + "".join(values))

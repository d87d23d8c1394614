"""Which bits come out on a device: a row has its own, whatever lies beside it and whoever shares it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import cupy  # the stand-in, if `device` has put it there
import numpy as np
import pytest

import device
import entrokern as ek
import fake_cupy
import shim
from cases import FLOATS, KINDS, Case, call, operands
from cuda_calls import (
    Host,
    Results,
    afresh,
    assert_same,
    distributions,
    given,
    logits,
    prepared,
    stand_in,
)
from cuda_cases import LONG, TABLE, in_place, spoil
from device import to_device, to_host
from entrokern.cuda import launch, quantities, sources
from entrokern.cuda.sources import BYTES_OF_A_BLOCK, cluster_size

# --- the same bits ---------------------------------------------------------------------------------------

LENGTHS = (1, 3, 10, 100, 1000, 4099, 16384, 16385, 40000)
N = 300
PARTS = (slice(0, 1), slice(N - 1, N), slice(120, 122), slice(7, 44))


def row_by_row(case: Case) -> Case:
    """The case with a result for each row."""
    reduces = "reduction" in inspect.signature(getattr(ek, case.function)).parameters
    return case._replace(options={**case.options, "reduction": "none"}) if reduces else case


def results_of(case: Case, args: list[Any], options: dict[str, Any], rows: slice = slice(None)) -> Results:
    """The results of some rows, which lie where they lie among all rows."""
    n = len(args[0])

    def part(value: Any) -> Any:
        return value[rows] if isinstance(value, cupy.ndarray) and len(value) == n else value

    return call(case.function, [part(a) for a in args], {name: part(value) for name, value in options.items()})


LOSS_AND_GRADIENT = Case("", "score", ("logits", "labels"), {"outputs": ("loss", "lse", "grad")})


@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_row_has_its_own_bits(monkeypatch: pytest.MonkeyPatch, dtype: str, k: int) -> None:
    """Whatever comes with it, wherever it is, and however its work is shared."""
    args, options = prepared(LOSS_AND_GRADIENT, N, k, dtype)
    want = results_of(LOSS_AND_GRADIENT, args, options)
    for few, order in ((quantities.FEW_BLOCKS, 0), (0, 1)):
        monkeypatch.setattr(quantities, "FEW_BLOCKS", few)
        monkeypatch.setattr(shim, "order", order)
        for rows in PARTS:
            with afresh():
                got = results_of(LOSS_AND_GRADIENT, args, options, rows)
            assert_same(got, want, f"rows {rows.start} to {rows.stop}, few are {few}, order {order}", rows)


@pytest.mark.parametrize("case", [c for c in TABLE if c.function != "perplexity"], ids=lambda case: case.name)
def test_a_row_of_every_case_has_its_own_bits(case: Case) -> None:
    turn, case = TABLE.index(case), row_by_row(case)
    for dtype, n, k in (
        ("float32", N, LENGTHS[turn % 4]),
        ("bfloat16", 17, LENGTHS[4 + turn % 2]),
        (("float64", "float16")[turn % 2], 3, LENGTHS[5 + turn % 4]),
    ):
        args, options = prepared(case, n, k, dtype)
        want = results_of(case, args, options)
        for rows in (slice(n // 2, n // 2 + 1), slice(1, n - n // 3)):
            assert_same(results_of(case, args, options, rows), want, f"{dtype}, k = {k}, {rows}", rows)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_bits_are_the_same_again_and_in_any_order(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    turn = TABLE.index(case)
    for dtype, n, k in (("float32", N, 33), (list(FLOATS)[turn % 4], 2, 20_000)):
        args, options = prepared(case, n, k, dtype)
        want = results_of(case, args, options)
        assert_same(results_of(case, args, options), want, "again")
        monkeypatch.setattr(shim, "order", 1 - shim.order)
        assert_same(results_of(case, args, options), want, "the other order")


# --- clusters: blocks that share a row -------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4, 8])
def test_as_few_blocks_share_a_row_as_keep_it_in_cache(size: int) -> None:
    for k in (1, 16_384, 16_385, 24_577, 50_000, 131_072, 262_144, 10**7):
        blocks, segments = cluster_size(k, size), sources.segments_of(k)
        assert blocks in (1, 2, 4, 8) and blocks <= segments
        assert k * size <= blocks * BYTES_OF_A_BLOCK or blocks == 8 or 2 * blocks > segments
        assert blocks == 1 or k * size > blocks // 2 * BYTES_OF_A_BLOCK


def backwards(values: Host) -> Any:
    return to_device(values[..., ::-1].copy())[..., ::-1]


def late(values: Host) -> Any:
    """Rows that begin where no vector does, with gaps between them."""
    k = values.shape[-1]
    return to_device(np.pad(values, ((0, 0), (1, 2))))[:, 1 : k + 1]


def apart(values: Host) -> Any:
    return to_device(np.asfortranarray(values))


ONE = {("logits",), ("logits", "labels"), ("logits", "some ignored")}
TWO = {("logits", "dense"), ("logits", "other logits")}
OF_LOGITS = [c for c in LONG if c.operands in TWO or (c.operands in ONE and in_place(c, [0]))]
READ_AGAIN = re.compile(r"softmax_(pair|js)_|soft.*_(maps|distributions)$")  # kernels that read a row more than once


def take_clusters_away(patch: pytest.MonkeyPatch) -> None:
    if device.REAL:
        patch.setattr(quantities, "has_clusters", lambda: False)
    else:
        patch.setitem(fake_cupy.ATTRIBUTES, "ComputeCapabilityMajor", 8)


@pytest.mark.parametrize("case", OF_LOGITS, ids=lambda c: c.name)
def test_a_row_that_blocks_share_has_its_own_bits(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Those that it has on a device without clusters: wherever it lies, in place, after other rows, and in parts."""
    turn, n, operands_read = OF_LOGITS.index(case), 3, 1 + (case.operands in TWO)
    k = 131_073 if device.REAL and turn % 4 > 1 else 70_001  # in 8 blocks; the shim would take long
    monkeypatch.setattr(quantities, "FEW_BLOCKS", 0)

    def results(clusters: bool = True, written: bool = False) -> Results:
        there = [layout(a.copy()) if a.shape == (n, k) else given(a) for a in args]
        fake_cupy.reset()
        with afresh():
            got = call(case.function, there, options | (in_place(case, there) if written else {}))
        together = clusters and quantities.has_clusters() and any(map(READ_AGAIN.match, shim.launches))
        size = operands_read * args[0].itemsize
        assert device.REAL or max(shim.clusters) == (cluster_size(k, size) if together else 1)
        return got

    for i, layout in enumerate(((late, apart), (to_device, backwards))[turn % 2]):
        dtypes = [*FLOATS] if operands_read == 1 else [*FLOATS][:3]  # two of float64 are for the careful kernels
        args, options = operands(case, n, k, dtypes[(turn // 2 + i) % len(dtypes)], KINDS[turn % len(KINDS)])
        spoil(case, args)
        options = {name: given(value) for name, value in options.items()}
        with pytest.MonkeyPatch.context() as patch:
            take_clusters_away(patch)
            want = results()
        assert_same(results(), want, layout.__name__)
        assert_same(results(written=True), want, f"{layout.__name__}, in place")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "MOST_BLOCKS", 8)
            assert_same(results(), want, f"{layout.__name__}, one after another")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quantities, *(("FEW_BLOCKS", 100), ("SHARED_BYTES", 0))[turn % 2])
            assert_same(results(clusters=False), want, f"{layout.__name__}, in parts")


GRADIENTS: dict[str, Callable[[Any, Any], Any]] = {
    "softmax_float32_maps": lambda x, y: ek.cross_entropy(x, [1, 2], reduction="none", return_grad=True),
    "soft_target_float32_maps": lambda x, y: ek.cross_entropy(x, y, reduction="none", return_grad=True),
    "softmax_pair_float32_maps": lambda x, y: ek.kl_divergence(
        x, y, p_form="logits", q_form="logits", reduction="none", return_grad="q"
    ),
}
PLANTED = {
    "no barrier before the first row": ("if (IN_CLUSTERS && cluster_size() > 1) cluster_barrier();", ""),
    "no barrier after the records": ("if (shared) cluster_barrier();", ""),
    "records over those before": ("(side + SWEEP) % 2", "0"),
}


@stand_in
@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("fault", PLANTED)
def test_a_cluster_that_does_not_wait_is_seen(monkeypatch: pytest.MonkeyPatch, fault: str, name: str) -> None:
    kernel, library = sources.KERNELS[name], shim.library
    right, wrong = PLANTED[fault]
    text = sources.source([kernel])
    assert text.count(right) == 1
    x, y = (to_device(of(2, 40_000)) for of in (logits, distributions))
    monkeypatch.setattr(quantities, "FEW_BLOCKS", 0)
    monkeypatch.setattr(launch, "MOST_BLOCKS", 2)  # the second row after the first

    def gradient() -> Host:
        return to_host(GRADIENTS[name](x, y)[1])

    want = gradient()
    planted = shim.compiled(text.replace(right, wrong), [name], name="planted")
    monkeypatch.setattr(shim, "library", lambda family: planted if family == kernel.family else library(family))
    seen = False
    for order in (0, 1):  # a record that is missing may be that of no largest logit
        monkeypatch.setattr(shim, "order", order)
        seen |= bool((gradient() != want).any())
    assert seen


# --- weights of classes along a line ---------------------------------------------------------------------

CLASS_AT = """
extern "C" __global__ void class_at(ARGUMENTS a) {
  Visit<float, float, true, false> visit = visit_of<float, float, true, false>(a, 0, (const float *)nullptr);
  visit.begin_segment(a.n);
  *(unsigned *)a.partial = visit.class_of(a.n + a.k);
}
"""


@stand_in
def test_the_class_of_an_element_beyond_32_bits() -> None:
    kernels = shim.compiled(sources.family_source("binary") + CLASS_AT, ["class_at"], name="class-at")
    record, found = np.zeros(1, sources.arguments_of("binary")), np.zeros(1, np.uint32)
    record["partial"] = found.ctypes.data
    for period in (1, 3, 8, 1000, 16384, 65535, 65536):
        for low in (0, 3, 16384, 2**31 + 5, 2**32 - 1, 2**32 + 16384, 7 * 2**33 + 1, 2**40 + 65535):
            for beyond in (0, 1, 4, 16383):
                record["period"], record["n"], record["k"] = period, low, beyond
                kernels.launch("class_at", (1,), 32, 0, record)
                assert found[0] == (low + beyond) % period, (period, low, beyond)

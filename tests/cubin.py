"""Machine code of the CUDA kernels, made and read without a GPU.

NVRTC compiles a kernel, cuobjdump tells its registers and memory, nvdisasm lists its instructions (SASS). All three
come as wheels. As a program, this prints what the tests look at, for all kernels or those named.
"""

from __future__ import annotations

import functools
import heapq
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from assembly import Graph, cycles
from entrokern.cuda.sources import KERNELS, source

PACKAGES = "cuda-bindings nvidia-cuda-nvrtc nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
HOPPER = 90  # the architecture whose code is read
RESERVED = 1024  # bytes of a block's shared memory there, which are the system's

LABEL = re.compile(r"(?:\.L_x_\d+|[\w$]+):$")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z]\w*(?:\.\w+)*)\s*(.*?)\s*;(.*)")
JUMP = re.compile(r"(BRA|BRX|BRXU|JMP|JMX|RET|EXIT|CALL)\b")


class Refused(RuntimeError):
    """What the compiler has to say against a kernel: errors, and warnings."""


# --- compiling ---------------------------------------------------------------------------------------


@functools.cache
def missing() -> str | None:
    """What to install where there are no compiler and disassembler."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        found = str(error).splitlines()[0]
    else:
        absent = [name for name in ("cuobjdump", "nvdisasm") if tool(name) is None]
        if not absent:
            return None
        found = f"no {' and no '.join(absent)}"
    return f"machine code of CUDA kernels ({found}): pip install {PACKAGES}"


def tool(name: str) -> str | None:
    wheels = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    return shutil.which(name, path=f"{wheels}{os.pathsep}{os.environ.get('PATH', '')}")


def version() -> str:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"NVRTC {major}.{minor}"


@functools.cache
def architectures() -> set[int]:
    """Those that the compiler knows."""
    from cuda.bindings import nvrtc

    _, known = nvrtc.nvrtcGetSupportedArchs()
    return set(known)


def compiled(text: str, architecture: int = HOPPER) -> bytes:
    """A text as a cubin; `Refused` if there is as much as a warning."""
    from cuda.bindings import nvrtc

    def bytes_of(size: Callable[..., Any], get: Callable[..., Any]) -> bytes:
        _, length = size(program)
        held = bytes(length)
        get(program, held)
        return held

    _, program = nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], [])
    options = [b"-std=c++17", b"-arch=sm_%d" % architecture]
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = bytes_of(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).strip(b"\0 \n").decode()
        if log or error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise Refused(f"sm_{architecture}: {log or error}")
        return bytes_of(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


_two = ThreadPoolExecutor(2)  # neither the compiler nor the tools hold Python's lock


@functools.cache
def _begun(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    return _two.submit(work, *arguments)


def _binary(name: str, architecture: int) -> bytes:
    return compiled(source([KERNELS[name]]), architecture)


def _code(name: str) -> Code:
    return read(_binary(name, HOPPER), name)


def begin(wanted: Iterable[tuple[str, int]]) -> None:
    """Start on kernels for architectures, two at a time: `code` and `binary` then wait for theirs."""
    for name, architecture in wanted:
        _begun(*(_code, name) if architecture == HOPPER else (_binary, name, architecture))


def binary(name: str, architecture: int) -> bytes:
    """The cubin of a kernel."""
    return _begun(_binary, name, architecture).result()


def code(name: str) -> Code:
    """The machine code of a kernel."""
    return _begun(_code, name).result()


# --- reading -----------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    guard: str  # the predicate under which it is run
    op: str
    operands: str  # a jump's with the labels that it may go to


@dataclass
class Code:
    """A kernel: what it needs of a thread, and its instructions between labels and jumps."""

    registers: int
    stack: int  # bytes, as are `shared` and `local`
    shared: int  # of a block, beside what a launch asks for
    local: int
    blocks: dict[str, list[Instruction]]
    follows: Graph

    def __iter__(self) -> Iterator[Instruction]:
        for block in self.blocks.values():
            yield from block

    def count(self, pattern: str) -> int:
        """Instructions whose name, with its suffixes, begins like this."""
        return sum(re.match(pattern, one.op) is not None for one in self)

    def wide(self, base: str) -> int:
        """Loads (LDG) or stores (STG) of 16 bytes."""
        return sum(is_wide(one.op, base) for one in self)

    def called(self) -> list[str]:
        """What is called, for each call."""
        return [one.operands for one in self if one.op.startswith("CALL")]


@dataclass
class Loop:
    """A loop that holds 16-byte loads."""

    mix: Counter[str]  # all of its instructions
    least: Counter[str]  # those of its shortest turn, in which all that can be jumped over is
    in_flight: int  # loads issued before the result of any of them is needed

    @property
    def loads(self) -> int:
        return sum(n for op, n in self.mix.items() if is_wide(op, "LDG"))


def read(cubin: bytes, name: str) -> Code:
    """The kernel `name` of a cubin that holds no other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, listing = run("cuobjdump", "-res-usage", path), run("nvdisasm", "-c", path)
    used = re.search(rf"Function {name}:\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert used, usage
    registers, stack, shared, local = map(int, used.groups())
    return Code(registers, stack, max(0, shared - RESERVED), local, *blocks(listing))


def cluster_of(cubin: bytes) -> int:
    """How many blocks of the one kernel of a cubin run together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        listing = run("cuobjdump", "-elf", path)
    found = re.search(r"EIATTR_CTA_PER_CLUSTER\s+Format:\s+\S+\s+Value:\s+0x(\w+) 0x1 0x1\b", listing)
    return int(found[1], 16) if found else 1


def run(name: str, *arguments: Any) -> str:
    found = tool(name)
    assert found, missing()
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=True).stdout


def blocks(listing: str) -> tuple[dict[str, list[Instruction]], Graph]:
    """The instructions between labels and jumps, and which follow which."""
    found: dict[str, list[Instruction]] = {"": []}
    here, ended = "", False
    for line in map(str.strip, listing.splitlines()):
        if LABEL.match(line):
            here, ended = line[:-1], False
            found[here] = []
        elif match := INSTRUCTION.match(line):
            if ended:
                here = f"after {here}"
                found[here] = []
            guard, op, operands, notes = match.groups(default="")
            ended = JUMP.match(op) is not None
            found[here].append(Instruction(guard, op, operands + notes if ended else operands))
    follows: Graph = {}
    for name, later in zip(found, [*list(found)[1:], None], strict=True):
        last = found[name][-1] if found[name] else Instruction("", "", "")
        jumps = JUMP.match(last.op) is not None and not last.op.startswith("CALL")
        follows[name] = set(re.findall(r"\.L_x_\d+", last.operands)) & set(found) if jumps else set()
        if later is not None and not (jumps and is_final(last)):
            follows[name].add(later)
    return found, follows


def is_final(jump: Instruction) -> bool:
    """Whether nothing falls through: a jump may have a condition among its operands, too."""
    return not jump.guard and (not jump.op.startswith("BRA") or jump.operands.startswith("`("))


def is_wide(op: str, base: str) -> bool:
    """Whether `op` moves 16 bytes: LDG a load of global memory, STG a store."""
    return re.match(rf"{base}\.E.*\.128\b", op) is not None


def in_flight(block: Iterable[Instruction]) -> int:
    """The most 16-byte loads that are issued one after another before anything touches the result of one."""
    most = 0
    awaited: list[range] = []  # registers
    for one in block:
        touched = [int(register) for register in re.findall(r"\bR(\d+)", one.operands)]
        if any(register in result for register in touched for result in awaited):
            awaited = []
        if is_wide(one.op, "LDG"):
            awaited.append(range(touched[0], touched[0] + 4))
            most = max(most, len(awaited))
    return most


def hot_loops(code: Code) -> list[Loop]:
    """The innermost loops with most of the 16-byte loads: the one that reads a row, and the one that writes its maps.

    What such loops leave over is read with a load at a time, in loops that are none of these.
    """
    loads = {name: sum(is_wide(one.op, "LDG") for one in block) for name, block in code.blocks.items()}

    def innermost(nodes: set[str], follows: Graph) -> Iterator[set[str]]:
        for loop in cycles(nodes, follows):
            if any(loads[name] for name in loop):
                entries = {later for name in set(follows) - loop for later in follows[name] & loop}
                inner = list(innermost(loop, {name: (follows[name] & loop) - entries for name in loop}))
                yield from inner or [loop]

    order = list(code.blocks)
    found = [sorted(loop, key=order.index) for loop in innermost(set(order), code.follows)]
    totals = [sum(loads[name] for name in loop) for loop in found]
    hot = [loop for loop, total in zip(found, totals, strict=True) if total > max(totals) / 2]
    hot.sort(key=lambda loop: order.index(loop[0]))
    return [loop_of(code, loop, max(loop, key=loads.__getitem__)) for loop in hot]


def loop_of(code: Code, names: list[str], start: str) -> Loop:
    def mix(some: list[str]) -> Counter[str]:
        return Counter(one.op for name in some for one in code.blocks[name])

    return Loop(
        mix=mix(names),
        least=mix(shortest_turn(code, set(names), start)),
        in_flight=max(in_flight(code.blocks[name]) for name in names),
    )


def shortest_turn(code: Code, nodes: set[str], start: str) -> list[str]:
    """The blocks of the way through a loop, from `start` back to it, that has the fewest instructions."""
    ways = [(0, [start])]
    seen = set()
    while True:
        length, way = heapq.heappop(ways)
        here = way[-1]
        if here == start and len(way) > 1:
            return way[:-1]
        if here not in seen:
            seen.add(here)
            for later in code.follows[here] & nodes:
                heapq.heappush(ways, (length + len(code.blocks[later]), [*way, later]))


def hot_loop(name: str) -> Counter[str]:
    """The instructions of the loop in which a kernel reads its rows, 16 bytes at a time."""
    return hot_loops(code(name))[0].mix


def elements_of(loop: Loop, name: str) -> int:
    """How many elements a thread of the kernel `name` reads in a turn of its loop."""
    dtype = re.search(r"float(16|32|64)", name)
    assert dtype, name
    return loop.loads * 16 * 8 // int(dtype[1])


# --- the table ---------------------------------------------------------------------------------------


def row_of(name: str) -> list[str]:
    found = code(name)
    loops = hot_loops(found)

    def per_element(pattern: str) -> str:
        def of(loop: Loop, mix: Counter[str]) -> float:
            return sum(n for op, n in mix.items() if re.match(pattern, op)) / elements_of(loop, name)

        return ", ".join(f"{of(loop, loop.mix):.1f} ({of(loop, loop.least):.1f})" for loop in loops)

    return [
        *(name, str(found.registers), str(found.stack)),
        *(str(found.wide("LDG")), " ".join(str(loop.in_flight) for loop in loops)),
        *(str(found.wide("STG")), str(found.count(r"MUFU\.EX2"))),
        *(per_element("."), per_element(r"MUFU\.EX2")),
    ]


def main(names: list[str]) -> None:
    """A line for each kernel; for each of its hot loops what an element costs, in all of it and in a shortest turn."""
    columns = ("registers", "stack", "LDG.128", "in flight", "STG.128", "EX2", "loop/element (least)", "EX2 (least)")
    begin((name, HOPPER) for name in names)
    rows = [[f"sm_{HOPPER}", *columns], *map(row_of, names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(KERNELS))

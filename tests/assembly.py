"""Assembly as text, read: the loops of a function and what is in them.

Good for what LLVM prints for x86-64 and AArch64. The blocks between jumps are a graph; a loop is a set of
blocks that reach one another, and an innermost one is what remains of no loop inside when its entry is taken
away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

Graph = dict[str, set[str]]

JUMP = re.compile(r"(j\w+|retq?|ud2|b|b\.\w+|cbn?z|tbn?z|ret|br|brk)$")
FINAL = re.compile(r"(jmpq?|retq?|ud2|b|br|brk)$")  # nothing falls through
X86 = re.compile(r"v?(?:add|sub|mul|div|fn?m(?:add|sub)\d*|max|min|sqrt|scalef|rndscale|round)([ps])[sd]$")
ARM = re.compile(r"f(?:add|sub|mul|nmul|mla|mls|div|max|min|maxnm|minnm|n?madd|n?msub|rint\w|sqrt)$")


@dataclass
class Loop:
    """An innermost loop: how many instructions of which kind."""

    packed: dict[int, int] = field(default_factory=dict)  # arithmetic of floats: bytes of the registers → count
    scalar: int = 0
    stack: int = 0  # loads and stores of what did not fit in registers
    calls: list[str] = field(default_factory=list)

    @property
    def n_packed(self) -> int:
        return sum(self.packed.values())

    def count(self, instruction: str) -> None:
        op, _, operands = instruction.partition("\t")
        if match := X86.match(op):
            if match[1] == "s":
                self.scalar += 1
            else:
                width = 64 if "%zmm" in operands else 32 if "%ymm" in operands else 16
                self.packed[width] = self.packed.get(width, 0) + 1
        elif ARM.match(op):
            if re.search(r"\bv\d+\.[24][sd]", operands):
                self.packed[16] = self.packed.get(16, 0) + 1
            else:
                self.scalar += 1
        elif re.search(r"\(%r[sb]p|\[(sp|x29)\b", operands):
            self.stack += 1


def instructions(assembly: str, symbol: str) -> list[str]:
    """The labels (ending in a colon) and instructions (a tab before the operands) of one function."""
    _, _, text = assembly.partition(f"\n{symbol}:")
    assert text, f"no function {symbol}"
    text, _, _ = text.partition("\n.Lfunc_end")
    lines = (re.sub(r"\s*(# |//).*", "", line).strip() for line in text.splitlines())
    # Directives begin with a dot, as labels do.
    return [line for line in lines if line and (line.endswith(":") or not line.startswith("."))]


def with_callees(lines: list[str]) -> list[str]:
    """Calls with the name of what they call: on x86 its address is put into a register before."""
    held: dict[str, str] = {}
    named = []
    for line in lines:
        if match := re.match(r"movabsq\t\$([^.\s][^,]*), (%\w+)", line):
            held[match[2]] = match[1]
        if match := re.match(r"(?:callq?|blr?)\t\*?(\S+)", line):
            line = f"call\t{held.get(match[1], match[1])}"
        named.append(line)
    return named


def blocks(lines: list[str]) -> tuple[dict[str, list[str]], Graph]:
    """The instructions between labels and jumps, and which follow which."""
    code: dict[str, list[str]] = {"": []}
    here, ended = "", False
    for line in lines:
        if line.endswith(":"):
            here, ended = line[:-1], False
            code[here] = []
            continue
        if ended:
            here, ended = f"after {here}", False
            code[here] = []
        code[here].append(line)
        ended = JUMP.match(line.split("\t")[0]) is not None
    follows: Graph = {}
    names = list(code)
    for name, later in zip(names, [*names[1:], ""], strict=True):
        last = code[name][-1] if code[name] else ""
        op = last.split("\t")[0]
        follows[name] = {label for label in re.findall(r"\.L\w+", last) if label in code} if JUMP.match(op) else set()
        if later and not FINAL.match(op):
            follows[name].add(later)
    return code, follows


def cycles(nodes: set[str], follows: Graph) -> Iterator[set[str]]:
    """Sets of nodes that reach one another (Tarjan's algorithm, with its stack as a list)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    waiting: list[str] = []
    for root in nodes:
        if root in order:
            continue
        path = [(root, iter(follows[root] & nodes))]
        while path:
            node, rest = path[-1]
            if node not in order:
                order[node] = low[node] = len(order)
                waiting.append(node)
            for other in rest:
                if other not in order:
                    path.append((other, iter(follows[other] & nodes)))
                    break
                if other in waiting:
                    low[node] = min(low[node], order[other])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == order[node]:
                    at = waiting.index(node)
                    found, waiting[at:] = set(waiting[at:]), []
                    if len(found) > 1 or node in follows[node]:
                        yield found


def innermost(nodes: set[str], follows: Graph) -> Iterator[set[str]]:
    for loop in cycles(nodes, follows):
        entries = {later for node in set(follows) - loop for later in follows[node] & loop}
        cut = {node: (follows[node] & loop) - entries for node in loop}
        inner = list(innermost(loop, cut))
        yield from inner or [loop]


def loops(assembly: str, symbol: str) -> tuple[list[Loop], set[str]]:
    """The innermost loops of a function, and what is called in its loops, inner and outer."""
    code, follows = blocks(with_callees(instructions(assembly, symbol)))
    called = {
        line.split("\t")[1]
        for loop in cycles(set(code), follows)
        for block in loop
        for line in code[block]
        if line.startswith("call\t")
    }
    found = []
    for nodes in innermost(set(code), follows):
        loop = Loop()
        for line in (line for node in nodes for line in code[node]):
            if line.startswith("call\t"):
                loop.calls.append(line.split("\t")[1])
            else:
                loop.count(line)
        found.append(loop)
    return found, called

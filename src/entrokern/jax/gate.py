"""The way from XLA's threads into Python, which closes before the interpreter ends.

JAX computes in the background, and can call when Python is on its way out: a thread that enters then never returns, and
the process waits for it without end. So the function that XLA calls is machine code. It counts who is inside, and once
the gate is closed it answers with an error in place of Python.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import time
from typing import Any

import llvmlite.binding as llvm

SECONDS = 1e-3  # between looks at who is still inside

CODE = """
define i64 @enter(i64 %frame) {{
    %inside = inttoptr i64 {inside} to ptr
    %closed = inttoptr i64 {closed} to ptr
    %before = atomicrmw add ptr %inside, i64 1 seq_cst
    %flag = load atomic i64, ptr %closed seq_cst, align 8
    %is_open = icmp eq i64 %flag, 0
    br i1 %is_open, label %open, label %shut
open:
    %python = inttoptr i64 {python} to ptr
    %answer = call i64 %python(i64 %frame)
    br label %leave
shut:
    %api_at = add i64 %frame, {api}
    %api_place = inttoptr i64 %api_at to ptr
    %api = load i64, ptr %api_place
    %is_known = icmp ne i64 %api, 0
    br i1 %is_known, label %refuse, label %leave
refuse:
    %create_at = add i64 %api, {create_error}
    %create_place = inttoptr i64 %create_at to ptr
    %create = load ptr, ptr %create_place
    %error = call i64 %create(i64 {arguments})
    br label %leave
leave:
    %result = phi i64 [ %answer, %open ], [ 0, %shut ], [ %error, %refuse ]
    %after = atomicrmw sub ptr %inside, i64 1 seq_cst
    ret i64 %result
}}
"""

_inside, _closed = ctypes.c_int64(0), ctypes.c_int64(0)
_kept: list[Any] = []  # what machine code refers to, as long as the process lives
_process = os.getpid()


def way_in(python: Any, *, api: int, create_error: int, arguments: ctypes.Structure) -> int:
    """The address of a function from an address to an address: `python` until the gate closes.

    After that it calls the function at offset `create_error` of what lies at offset `api` of its argument.
    """
    code = CODE.format(
        inside=ctypes.addressof(_inside),
        closed=ctypes.addressof(_closed),
        python=ctypes.cast(python, ctypes.c_void_p).value,
        api=api,
        create_error=create_error,
        arguments=ctypes.addressof(arguments),
    )
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), machine)
    engine.finalize_object()
    _kept.extend((engine, python, arguments))
    address: int = engine.get_function_address("enter")
    return address


@atexit.register  # after JAX's own, and so run before it
def _close() -> None:
    _closed.value = 1
    while _inside.value and os.getpid() == _process:  # a forked process has none of the threads
        time.sleep(SECONDS)

"""Results of rows, written block by block to .npy, .npz or .csv: whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from ._arrays import Array
from ._files import InputError

CSV_ROWS = 1 << 14  # at a time: a number as text takes 128 bytes


class Sink(Protocol):
    """Takes the results of consecutive rows by name."""

    def write(self, columns: dict[str, Array]) -> None: ...

    def finish(self) -> None: ...


class _Npy:
    """One array; its dtype is that of the first block."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        self._file, self._shape, self._begun = file, shape, False

    def write(self, columns: dict[str, Array]) -> None:
        (values,) = columns.values()
        if not self._begun:
            header = {"descr": values.dtype.str, "fortran_order": False, "shape": self._shape}
            np.lib.format.write_array_header_1_0(self._file, header)
            self._begun = True
        self._file.write(values.tobytes())

    def finish(self) -> None:
        pass


class _Npz:
    """Several arrays. A zip file is written member after member, so each is spooled beside it first."""

    def __init__(self, file: IO[bytes], names: tuple[str, ...], shape: tuple[int, ...], stack: ExitStack) -> None:
        self._file = file
        folder = os.path.dirname(file.name)
        spool = tempfile.TemporaryFile
        self._spools = {name: stack.enter_context(spool(dir=folder)) for name in names}
        self._arrays = {name: _Npy(spool, shape) for name, spool in self._spools.items()}

    def write(self, columns: dict[str, Array]) -> None:
        for name, array in self._arrays.items():
            array.write({name: columns[name]})

    def finish(self) -> None:
        with zipfile.ZipFile(self._file, "w") as archive:
            for name, spool in self._spools.items():
                spool.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    shutil.copyfileobj(spool, member, 1 << 20)


class _Csv:
    """A line for every row: its number, and the shortest digits that give each value back."""

    def __init__(self, file: IO[bytes], names: tuple[str, ...]) -> None:
        self._file, self._names, self._row = file, names, 0
        file.write(",".join(("row", *names)).encode() + b"\n")

    def write(self, columns: dict[str, Array]) -> None:
        n = columns[self._names[0]].size
        for start in range(0, n, CSV_ROWS):
            stop = min(n, start + CSV_ROWS)
            texts = [map(str, range(self._row + start, self._row + stop))]
            texts += [columns[name][start:stop].astype(str).tolist() for name in self._names]
            self._file.write("".join(f"{','.join(line)}\n" for line in zip(*texts, strict=True)).encode())
        self._row += n

    def finish(self) -> None:
        pass


def check_path(path: str, names: tuple[str, ...]) -> None:
    """Refuse, before any work, what cannot be written."""
    if not path.endswith((".npy", ".npz", ".csv")):
        raise InputError(f"--out {path}: the name says how to write; end it in .npy, .npz or .csv")
    if path.endswith(".npy") and len(names) != 1:
        raise InputError(f"--out {path}: a .npy file holds one array, not {len(names)}; use .npz or .csv")
    if os.path.isdir(path):
        raise InputError(f"--out {path} is a folder")


@contextmanager
def saving(path: str, names: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[Callable[[dict[str, Array]], None]]:
    """A function that writes the results of a block of rows, by name.

    The file appears under `path` when the ``with`` block ends, and not at all where it raises.
    """
    check_path(path, names)
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open(part, "wb"))
            sink: Sink
            if path.endswith(".npz"):
                sink = _Npz(file, names, shape, stack)
            else:
                sink = _Csv(file, names) if path.endswith(".csv") else _Npy(file, shape)
            yield sink.write
            sink.finish()
        os.replace(part, target)
    except OSError as error:  # of a full disk it does not say which file
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)

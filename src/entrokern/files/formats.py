"""The formats that results are written in: columns of numbers, read from their spools in bounded memory."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from .._arrays import Array
from .stored import InputError, needed

CSV_ROWS = 1 << 14  # at a time: a number as text takes 128 bytes
TABLE_ROWS = 1 << 20  # in a row group or a batch of records


@dataclass
class Spooled:
    """Columns of results, each in a file of its own as it lies in memory.

    `shape` is that of the rows; where some were left out they are fewer, and a column ``row`` has their numbers.
    """

    paths: dict[str, str]
    dtypes: dict[str, np.dtype[Any]]
    n_rows: int
    shape: tuple[int, ...]

    def parts(self, rows: int) -> Iterator[dict[str, Array]]:
        """The columns, `rows` rows at a time: at least one part, if only an empty one."""
        for start in range(0, max(self.n_rows, 1), rows):
            n = min(rows, self.n_rows - start)
            yield {
                name: np.fromfile(path, self.dtypes[name], n, offset=start * self.dtypes[name].itemsize)
                for name, path in self.paths.items()
            }

    def write_array(self, name: str, file: IO[bytes]) -> None:
        """A column as NumPy saves an array."""
        header = {"descr": self.dtypes[name].str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, header)
        with open(self.paths[name], "rb") as spool:
            shutil.copyfileobj(spool, file, 1 << 20)


def _npy(table: Spooled, path: str) -> None:
    (name,) = (name for name in table.paths if name != "row")  # of rows that were left out, only the others are there
    with open(path, "wb") as file:
        table.write_array(name, file)


def _npz(table: Spooled, path: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in table.paths:
            entry = zipfile.ZipInfo(f"{name}.npy")  # without the time of day: the same results are the same file
            with archive.open(entry, "w", force_zip64=True) as member:
                table.write_array(name, member)


def _csv(table: Spooled, path: str) -> None:
    """A line for every row: its number, and the shortest digits that give each value back."""
    names = [name for name in table.paths if name != "row"]
    done = 0
    with open(path, "wb") as file:
        file.write(",".join(("row", *names)).encode() + b"\n")
        for columns in table.parts(CSV_ROWS):
            n = columns[names[0]].size
            texts = [map(str, columns["row"].tolist() if "row" in columns else range(done, done + n))]
            texts += [columns[name].astype(str).tolist() for name in names]
            file.write("".join(f"{','.join(line)}\n" for line in zip(*texts, strict=True)).encode())
            done += n


def _parquet(table: Spooled, path: str) -> None:
    parquet, schema = needed("pyarrow.parquet", "a .parquet file"), _schema(table)
    with parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(table, schema):
            writer.write_batch(batch)


def _arrow(table: Spooled, path: str) -> None:
    schema = _schema(table)
    with needed("pyarrow", "an Arrow file").ipc.new_file(path, schema) as writer:
        for batch in _batches(table, schema):
            writer.write_batch(batch)


def _schema(table: Spooled) -> Any:
    arrow = needed("pyarrow", "a table")
    return arrow.schema([(name, arrow.from_numpy_dtype(dtype)) for name, dtype in table.dtypes.items()])


def _batches(table: Spooled, schema: Any) -> Iterator[Any]:
    arrow = needed("pyarrow", "a table")
    for columns in table.parts(TABLE_ROWS):
        yield arrow.record_batch([arrow.array(columns[name]) for name in schema.names], schema=schema)


FORMATS: dict[str, Callable[[Spooled, str], None]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}


def check_path(path: str, names: tuple[str, ...]) -> None:
    """Refuse, before any work, what cannot be written."""
    suffix = os.path.splitext(path)[1]
    if suffix not in FORMATS:
        *most, last = FORMATS
        raise InputError(f"--out {path}: the name says how to write; end it in {', '.join(most)} or {last}")
    if suffix == ".npy" and len(names) != 1:
        raise InputError(f"--out {path}: a .npy file holds one array, not {len(names)}; use .npz, .csv or .parquet")
    if FORMATS[suffix] in (_parquet, _arrow):
        needed("pyarrow", f"--out {path}")
    if os.path.isdir(path):
        raise InputError(f"--out {path} is a folder")

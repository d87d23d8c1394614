"""Arrow (Feather) files: their batches of records, as pyarrow decodes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .layout import Layout
from .stored import needed
from .table import dtype_of


class Ipc:
    """A file's columns, part by part: a part is a batch of records.

    Attributes
    ----------
    schema : pyarrow.Schema
    rows : list of int
        How many rows each part has.
    """

    def __init__(self, path: str) -> None:
        self._arrow, self._path = needed("pyarrow", "an Arrow file"), path
        with self._arrow.OSFile(path) as file:
            self.schema = self._arrow.ipc.open_file(file).schema
        self.layout = Layout(path, self.schema)
        self.rows = self.layout.rows
        self._row_bytes: dict[str, int] = {}

    def list_size(self, column: str) -> int | None:
        """How long the first list of a column is; ``None`` where it takes decoding to say."""
        return self.layout.list_size(column)

    def held(self, part: int, columns: Sequence[str]) -> list[int]:
        """About how many bytes each of some columns of numbers takes while a part is read: as it is stored, and where
        that is compressed, decoded."""
        if not self._row_bytes:
            self._row_bytes = {column: dtype_of(self.schema.field(column).type).itemsize for column in columns}
        held = self.rows[part] * (2 if self.layout.compressed else 1)
        return [held * self._row_bytes[column] for column in columns]

    def batches(self, columns: Sequence[str], parts: Sequence[int], step: int) -> Iterator[Any]:
        """The records of parts, a part at a time."""
        wanted = [self.schema.get_field_index(column) for column in columns]
        options = self._arrow.ipc.IpcReadOptions(included_fields=wanted)
        with self._arrow.OSFile(self._path) as file:
            reader = self._arrow.ipc.open_file(file, options=options)
            for part in parts:
                batch = reader.get_batch(part)
                yield batch
                del batch  # before the next is decoded
                # Memory for all columns is taken and only that of the chosen ones touched, if it is given back.
                self._arrow.default_memory_pool().release_unused()

    def close(self) -> None:
        pass

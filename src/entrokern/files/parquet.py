"""Parquet files: their rows, as pyarrow decodes them, a page and a dictionary of each column in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .stored import needed

READ_AHEAD = 1 << 20  # bytes of all columns together
PAGES = 2 << 20  # bytes of a page and a dictionary of one column: writers end either at about 1 MB


class Parquet:
    """A file's columns, part by part: a part is a group of rows.

    Attributes
    ----------
    schema : pyarrow.Schema
    rows : list of int
        How many rows each part has.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = self._opened(1)
        self.schema, metadata = self._file.schema_arrow, self._file.metadata
        self.rows = [metadata.row_group(part).num_rows for part in range(metadata.num_row_groups)]
        if min(self.rows, default=0) < 0:
            raise ValueError("a group of fewer than 0 rows")
        self._leaves: dict[str, int] = {}

    def _opened(self, n_columns: int, metadata: Any = None) -> Any:
        # With a buffer, the pages of a column are read one after the other, without it all those of a row group.
        return needed("pyarrow.parquet", "a .parquet file").ParquetFile(
            self._path,
            metadata=metadata,
            buffer_size=max(1 << 14, READ_AHEAD // n_columns),
            pre_buffer=False,
            page_checksum_verification=True,
        )

    def list_size(self, column: str) -> int | None:
        """How long the first list of a column is: it takes decoding to say."""
        return None

    def held(self, part: int, columns: Sequence[str]) -> list[int]:
        """About how many bytes each of some columns of numbers takes while a part is read: pages as they are stored,
        and decoded."""
        metadata = self._file.metadata
        if not self._leaves:
            self._leaves = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
        group = metadata.row_group(part)
        if 0 < group.total_byte_size < PAGES:  # of many small groups, each column need not be looked at
            return [group.total_byte_size // len(columns)] * len(columns)
        sizes = (group.column(self._leaves[column]).total_uncompressed_size for column in columns)
        return [2 * min(size, PAGES) for size in sizes]

    def batches(self, columns: Sequence[str], parts: Sequence[int], step: int) -> Iterator[Any]:
        """The records of parts, at most `step` rows at a time."""
        with self._opened(len(columns), self._file.metadata) as file:
            yield from file.iter_batches(batch_size=step, row_groups=list(parts), columns=list(columns))

    def close(self) -> None:
        self._file.close()

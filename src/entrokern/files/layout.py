"""Where the elements of an Arrow file's columns lie: what its footer and the headers of its batches of records say.

pyarrow tells it only of a batch that it has read as a whole. What is said to lie outside the file is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array
from .flat import number, root
from .stored import needed
from .table import Choice, dtype_of, is_list

MARK = b"ARROW1"  # a file begins and ends with it
BATCH = 3  # the type of a message that is a batch of records
CODECS = {0: "lz4", 1: "zstd"}  # pyarrow's names of the frames that a buffer is compressed into
AS_IS = -1  # instead of the size of a buffer that compression did not make smaller
PIECE = 1 << 17  # offsets looked at together


class Segment(NamedTuple):
    """Where a buffer lies in a file, and what decompresses it."""

    place: int
    size: int
    codec: str | None

    def stream(self, file: Any) -> Any:
        """What it holds, piece by piece."""
        stored = file.get_stream(self.place, self.size)
        return stored if self.codec is None else needed("pyarrow", "it").CompressedInputStream(stored, self.codec)


class Run(NamedTuple):
    """The rows of a batch, and where the elements of each column lie."""

    rows: int
    columns: tuple[Segment, ...]


class Layout:
    """The batches of records of a file.

    Attributes
    ----------
    rows : list of int
        How many rows each has.
    compressed : bool
        Whether any is.
    """

    def __init__(self, path: str, schema: Any) -> None:
        self._path, self._schema = path, schema
        with self._opened() as file:
            footer = root(_footer(file))
            self._blocks = footer.structs(3, "qi4xq")
            declared = footer.table(1)
            big = declared is not None and declared.number(0, "h") != 0
            self._native = big == (sys.byteorder == "big")
            headers = [(batch.rows, batch.compressed) for batch in self._batches(file)]
        self.rows = [rows for rows, _ in headers]
        self.compressed = any(compressed for _, compressed in headers)

    def _opened(self) -> Any:
        return needed("pyarrow", "an Arrow file").OSFile(self._path)

    def _batches(self, file: Any) -> Iterator[_Batch]:
        return (_Batch(file, *block) for block in self._blocks)

    def runs(self, choice: Choice) -> list[Run] | None:
        """Where the elements lie; ``None`` where it takes more than reading or decompressing them to have the rows."""
        columns = self._columns()
        runs = []
        with self._opened() as file:
            for batch in self._batches(file):
                if not (self._native and batch.fits(columns)):
                    return None
                segments = [columns[name].elements(batch, choice.k) for name in choice.columns]
                found = tuple(segment for segment in segments if segment)
                if len(found) < len(segments):
                    return None
                if batch.rows:
                    runs.append(Run(batch.rows, found))
        return runs

    def list_size(self, name: str) -> int | None:
        """How long the first list of a column is; ``None`` where it takes decoding to say."""
        columns = self._columns()
        with self._opened() as file:
            for batch in self._batches(file):
                if batch.rows:
                    known = self._native and batch.fits(columns)
                    return columns[name].first_length(batch) if known else None
        return 0

    def _columns(self) -> dict[str, _Column]:
        nodes = buffers = 0
        columns = {}
        for field in self._schema:
            columns[field.name] = column = _Column(field.type, nodes, buffers)
            nodes, buffers = column.end
        return columns


class _Column:
    """A column's type, and which of the nodes and buffers of a batch are its own: from these numbers on."""

    def __init__(self, kind: Any, node: int, buffer: int) -> None:
        self._kind, self._node, self._buffer = kind, node, buffer
        nodes, buffers = _nodes_and_buffers(kind)
        self.end = node + nodes, buffer + buffers

    def elements(self, batch: _Batch, k: int | None) -> Segment | None:
        """Where they lie, one row after the other; of a column of lists, `k` in a row."""
        node, values, count = self._node, self._buffer + 1, batch.rows
        if is_list(self._kind):
            if not self._is_even(batch, k or 0):
                return None
            node, count = node + 1, count * (k or 0)
            values += 1 if hasattr(self._kind, "list_size") else 2
            if not batch.holds(node, count):
                raise ValueError(f"{batch.rows} lists have fewer than {count} numbers")
        if not (batch.complete(self._node, batch.rows) and batch.complete(node, count)):
            return None
        return batch.segment(values, count * dtype_of(self._kind).itemsize)

    def first_length(self, batch: _Batch) -> int | None:
        if not batch.complete(self._node, batch.rows):
            return None
        offsets = next(self._offsets(batch), None)
        if offsets is None or len(offsets) < 2 or offsets[0] or not batch.holds(self._node + 1, int(offsets[1])):
            return None
        return int(offsets[1])

    def _is_even(self, batch: _Batch, k: int) -> bool:
        """Whether the lists follow one another from the first element on, with `k` each."""
        if hasattr(self._kind, "list_size"):
            return True
        done = 0
        for offsets in self._offsets(batch):
            if not np.array_equal(offsets, np.arange(done, done + len(offsets)) * k):
                return False
            done += len(offsets)
        return done == batch.rows + 1

    def _offsets(self, batch: _Batch) -> Iterator[Array]:
        dtype = np.dtype(np.int64 if needed("pyarrow.types", "it").is_large_list(self._kind) else np.int32)
        segment = batch.segment(self._buffer + 1, (batch.rows + 1) * dtype.itemsize)
        if segment is not None:
            stream, left = segment.stream(batch.file), batch.rows + 1
            while left and (piece := stream.read(min(left, PIECE) * dtype.itemsize)):
                offsets = np.frombuffer(piece, dtype)
                yield offsets
                left -= len(offsets)


class _Batch:
    """A batch of records: what its header says, and how that fits to the file.

    Of each column, and of the elements of its lists, it has a node: how many there are, and how many of them are null;
    and buffers: where each lies in the body, and how long it is.
    """

    def __init__(self, file: Any, place: int, header_size: int, body_size: int) -> None:
        self.file = file
        self._body, self._body_size = place + header_size, body_size
        if min(place, header_size, body_size) < 0 or self._body + body_size > file.size():
            raise ValueError("a batch of records ends beyond the file")
        data = file.read_at(header_size, place)
        message = root(data[8 if data[:4] == b"\xff" * 4 else 4 :])  # old files have no mark before the size
        header = message.table(2)
        if header is None or message.number(1, "B") != BATCH:
            raise ValueError("a batch of records has no header")
        self._header, self._compression = header, header.table(3)
        self.rows, self.compressed = header.number(0, "q"), self._compression is not None
        if self.rows < 0:
            raise ValueError(f"a batch of {self.rows} records")

    def fits(self, columns: dict[str, _Column]) -> bool:
        """Whether it has the nodes and buffers that the columns are thought to have, no more and no fewer."""
        self._nodes, self._buffers = self._header.structs(1, "qq"), self._header.structs(2, "qq")
        *_, last = columns.values()
        return last.end == (len(self._nodes), len(self._buffers)) and not self._header.structs(4, "q")

    def complete(self, node: int, count: int) -> bool:
        """Whether there are as many as `count`, none of them null."""
        return self._nodes[node] == (count, 0)

    def holds(self, node: int, count: int) -> bool:
        """Whether there are `count` at least."""
        return 0 <= count <= self._nodes[node][0]

    def segment(self, buffer: int, size: int) -> Segment | None:
        """Where the first `size` bytes of a buffer come from; ``None`` where it has fewer."""
        place, stored = self._buffers[buffer]
        if min(place, stored) < 0 or place + stored > self._body_size:
            raise ValueError("a buffer ends beyond its batch of records")
        place += self._body
        codec, holds = None, stored
        if self._compression is not None and stored:
            holds = number(self.file.read_at(8, place), 0, "q")
            place, stored = place + 8, stored - 8
            if holds == AS_IS:
                holds = stored
            else:
                codec = CODECS.get(self._compression.number(0, "b"))
                if codec is None:
                    return None
        return Segment(place, stored if codec else size, codec) if size <= holds else None


def _nodes_and_buffers(kind: Any) -> tuple[int, int]:
    """How many a column of a type has. Too few where the type is a rare one, which `_Batch.fits` sees."""
    kind = getattr(kind, "storage_type", kind)
    is_struct = needed("pyarrow.types", "it").is_struct(kind)
    inner = [kind.value_type] if is_list(kind) else [field.type for field in kind] if is_struct else []
    nodes, buffers = 1, kind.num_buffers
    for part in inner:
        more = _nodes_and_buffers(part)
        nodes, buffers = nodes + more[0], buffers + more[1]
    return nodes, buffers


def _footer(file: Any) -> bytes:
    """The flatbuffer before its size and the mark at the end."""
    end = file.size() - len(MARK) - 4
    tail = file.read_at(len(MARK) + 4, max(0, end))
    size = number(tail, 0, "i")
    if tail[4:] != MARK or not 0 < size <= end:
        raise ValueError("no footer where one is expected")
    footer: bytes = file.read_at(size, end - size)
    return footer

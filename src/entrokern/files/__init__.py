"""Arrays in files, read a range of rows at a time; which format a file has, its name says."""

from __future__ import annotations

import importlib
import os
from typing import Any

from . import arrow
from .encoded import open_encoded
from .keys import Keys, Seen
from .pipeline import blocks, computed, spans
from .shards import Shards, shards_of, would_be_shard
from .stored import NAMES, TABLE, InputError, StoredArray
from .zarr import METADATA

__all__ = ["READERS", "TABLE", "InputError", "Keys", "StoredArray", "blocks", "computed"]
__all__ += ["labels_beside", "open_array", "open_keys", "refuse_input", "spans", "split_name"]

# The module that reads a file: `members(path)` names its arrays, `open_array(path, member, role, bfloat16)` opens one.
READERS = {
    ".npy": "npy",
    ".npz": "npy",
    ".parquet": "arrow",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".safetensors": "safetensors",
    ".zarr": "zarr",
}


def open_array(name: str, role: str, *, bfloat16: bool = False) -> StoredArray:
    """Open the array `name`: ``FILE``, ``FILE:MEMBER``, or a folder or a pattern of files as one.

    Parameters
    ----------
    name : str
        Where it is. Without a member it is the only array there, or the one of its role's name.
    role : str
        ``"x"``, ``"y"`` or another name that the member may have.
    bfloat16 : bool
        Whether 2-byte items of no NumPy type are that.

    Raises
    ------
    InputError
        What is wrong with the file, or with the name.
    OSError
        The file cannot be opened.
    """
    path, member = split_name(name)

    def one(path: str) -> StoredArray:
        array: StoredArray = _reader(path).open_array(path, member, role, bfloat16)
        return array

    shards = shards_of(path, _suffix)
    return one(path) if shards is None else Shards(name, shards, one)


def open_keys(name: str) -> Keys:
    """Open the column `name`, ``FILE`` or ``FILE:COLUMN``, whose value says of each row which group it is in.

    Raises
    ------
    InputError
        What is wrong with the file, or with the name; also where the values are no integers, bools or strings.
    OSError
        The file cannot be opened.
    """
    path, member = split_name(name)
    shards = shards_of(path, _suffix)
    if shards is None and not os.path.exists(path):
        raise InputError(f"{path}: No such file or directory; for a column in the file of X write :{path}")
    reader = _reader(path if shards is None else shards[0])
    seen = Seen() if reader is arrow else None

    def one(path: str) -> StoredArray:
        array: StoredArray = (
            reader.open_array(path, member, "by", False) if seen is None else open_encoded(path, member, seen)
        )
        return array

    return Keys(one(path) if shards is None else Shards(name, shards, one), seen)


def labels_beside(name: str) -> str | None:
    """The labels in the same file as the predictions `name`, if there are any."""
    path, member = split_name(name)
    shards = shards_of(path, _suffix)
    first = path if shards is None else shards[0]
    found = _reader(first).members(first)
    label = next((label for label in NAMES["y"] if label in found), None)
    return f"{path}:{label}" if label is not None and len(found) > 1 and member is None else None


def split_name(name: str) -> tuple[str, str | None]:
    """``data.npz:logits`` as path and member."""
    at = name.find(":")
    while at > 0 and not os.path.exists(name):
        if _suffix(name[:at]) is not None or os.path.isdir(name[:at]):
            return name[:at], name[at + 1 :]
        at = name.find(":", at + 1)
    return name, None


def refuse_input(out: str, name: str, array: StoredArray) -> None:
    """Refuse to write a file that is read, or one that would be among its shards the next time."""
    if os.path.exists(out) and any(os.path.samefile(out, path) for path in array.paths):
        raise InputError(f"--out {out} is a file that is read; choose another name")
    path, _ = split_name(name)
    if isinstance(array, Shards) and _suffix(out) is not None and would_be_shard(out, path):
        raise InputError(f"--out {out} would be one of the files of {path}; write it elsewhere")


def _suffix(path: str) -> str | None:
    """The suffix that says how to read `path`; a store is known by its metadata too."""
    suffix = os.path.splitext(path.rstrip("/"))[1]
    if suffix in READERS:
        return suffix
    return ".zarr" if any(os.path.exists(os.path.join(path, name)) for name in METADATA) else None


def _reader(path: str) -> Any:
    suffix = _suffix(path)
    if suffix is None:
        *most, last = READERS
        raise InputError(
            f"{path}: the name says how to read; end it in {', '.join(most)} or {last}, "
            "or name a folder or a pattern of such files (FILE:NAME picks an array)"
        )
    return importlib.import_module(f".{READERS[suffix]}", __name__)

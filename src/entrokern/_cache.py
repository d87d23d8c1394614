"""Where compiled kernels are kept on disk.

The folder's name holds the version and a hash of the CPU kernels' sources, so that a changed formula is
never served from an old file; files of a GPU's kernels are named by what they are compiled from. Where no
folder can be written, each process compiles again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path


@functools.cache
def sources_hash() -> str:
    """A hash of everything that a kernel of the CPU is compiled from."""
    package = Path(__file__).resolve().parent
    files = [package / "_formulas.py", *sorted((package / "cpu").glob("*.py"))]
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(file.name.encode() + file.read_bytes())
        except OSError:  # a zipped package: its sources cannot change under us
            digest.update(file.name.encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """Where compiled kernels are kept, or None where no such folder can be written."""
    from . import __version__

    given = os.environ.get("ENTROKERN_CACHE_DIR")
    try:
        if given:
            root = Path(given).expanduser()
        else:
            caches = os.environ.get("XDG_CACHE_HOME")
            root = (Path(caches) if caches else Path.home() / ".cache") / "entrokern"
        folder = root / f"{__version__}-{sources_hash()}"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # read-only, full, or no home at all
        return None
    return folder

"""Results on their way into a file: whole in the end, or kept in a work folder so that a run can be resumed.

The work folder lies beside the file: a spool for each column of results, which blocks are appended to, and a
journal of how far they go, replaced as a whole from time to time. In the end the spools become the file.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import Array
from .formats import FORMATS, Spooled, check_path
from .stored import InputError, one_line

SECONDS = 0.2  # between two journals at least,
SHARE = 20  # and so many times as long as one takes

ARRAY_MAKERS = ("_reconstruct", "_frombuffer", "scalar", "dtype", "ndarray")  # what NumPy pickles by
JOURNAL, LOCK = "journal", "lock"


class Unresumable(InputError):
    """What going on with the run cannot mend: its work is not kept."""


class Work:
    """The results of a run so far.

    Attributes
    ----------
    rows : int
        How many rows are done.
    state : object
        What else is known of them: what was passed, or what an interrupted run left.
    """

    def __init__(self, path: str, folder: Path, names: tuple[str, ...], request: dict[str, Any], state: Any) -> None:
        self._path, self._folder, self._names, self._request = path, folder, names, request
        self.state, self.rows, self._kept = state, 0, 0
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._spools: dict[str, int] = {}
        self._journaled = 0
        self._consistent = True
        self._due = time.monotonic() + SECONDS

    def resume(self) -> None:
        """Take up the work of an interrupted run, if there is one that the request fits."""
        try:
            journal = _loaded(self._folder / JOURNAL)
        except FileNotFoundError:
            return
        asked = journal["request"]
        differing = sorted(name for name in {*asked, *self._request} if asked.get(name) != self._request.get(name))
        if differing:
            raise InputError(
                f"--resume: the interrupted run that was to write {self._path} differs in {', '.join(differing)}; "
                "ask for the same, or leave --resume out to begin anew"
            )
        self.rows, self._kept, self._dtypes = journal["rows"], journal["kept"], journal["dtypes"]
        self.state = journal["state"]
        self._journaled = self.rows
        self._open_spools()
        for name, spool in self._spools.items():
            size = self._kept * self._dtypes[name].itemsize
            if os.fstat(spool).st_size < size:
                raise _damaged(self._folder / name)
            os.ftruncate(spool, size)

    @property
    def begun(self) -> bool:
        """Whether there are results, if only of no row."""
        return bool(self._dtypes)

    def add(self, stop: int, columns: dict[str, Array], count: Callable[[], None]) -> None:
        """Append the results of the rows up to `stop`; `count` takes them into the state."""
        with _writing(self._path):
            if not self.begun:
                self._dtypes = {name: columns[name].dtype for name in self._names}
                self._open_spools()
            for name, spool in self._spools.items():
                _write(spool, np.ascontiguousarray(columns[name]))
        self._consistent = False  # an interrupt in between leaves a state that counts what is not there
        count()
        self.rows = stop
        self._kept += columns[self._names[0]].size
        self._consistent = True
        if time.monotonic() >= self._due:
            with _writing(self._path):
                self._write_journal()

    def _open_spools(self) -> None:
        for name in self._names:
            self._spools[name] = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)

    def _write_journal(self) -> None:
        """Write down how far the spools go, once they have got to the disk."""
        begun = time.monotonic()
        self._consistent = False  # what did not get to the disk is not known to be there later
        for spool in self._spools.values():
            os.fdatasync(spool)
        journal = {"request": self._request, "rows": self.rows, "kept": self._kept, "dtypes": self._dtypes}
        part = self._folder / f"{JOURNAL}.part"
        with open(part, "wb") as file:
            pickle.dump(journal | {"state": self.state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._folder / JOURNAL)
        self._journaled = self.rows
        self._consistent = True
        now = time.monotonic()
        self._due = now + max(SECONDS, SHARE * (now - begun))

    def finish(self, shape: tuple[int, ...]) -> None:
        """Make the file of the spools."""
        with _writing(self._path):
            if time.monotonic() >= self._due:
                self._write_journal()
            target = Path(os.path.realpath(self._path))
            part = self._folder / f"part{target.suffix}"
            paths = {name: str(self._folder / name) for name in self._names}
            whole = self._kept == self.rows
            table = Spooled(paths, self._dtypes, self._kept, shape if whole else (self._kept,))
            try:
                FORMATS[target.suffix](table, str(part))
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)

    def keep(self) -> str:
        """Write down what is done after the run was interrupted; say how to go on, or nothing where nothing is."""
        if self._consistent and self.rows > self._journaled and self.begun:
            with suppress(OSError):
                for name, spool in self._spools.items():  # a full disk gets the room back that part of a block took
                    os.ftruncate(spool, self._kept * self._dtypes[name].itemsize)
                self._write_journal()
        try:
            rows = _loaded(self._folder / JOURNAL)["rows"]  # of one that was written as the interrupt came, too
        except (OSError, InputError):
            rows = 0
        return f"run again with --resume to continue at row {rows}" if rows else ""

    def close(self) -> None:
        for spool in self._spools.values():
            os.close(spool)


@contextmanager
def working(
    path: str,
    names: tuple[str, ...],
    shape: tuple[int, ...],
    request: dict[str, Any],
    state: Any,
    *,
    resume: bool = False,
    resumable: bool = True,
) -> Iterator[Work]:
    """The work on the file `path`, which appears when the ``with`` block ends, and not at all where it raises.

    Parameters
    ----------
    path : str
        The file; its suffix says its format.
    names : tuple of str
        The columns of results.
    shape : tuple of int
        Of the rows.
    request : dict
        What the results depend on: a run can be resumed where it is the same.
    state : object
        What is known of the rows that are done, besides their results; it can be pickled.
    resume : bool
        Whether to go on with what an interrupted run has left. Otherwise that is deleted.
    resumable : bool
        Whether this run leaves its work where it is interrupted.
    """
    check_path(path, tuple(name for name in names if name != "row"))
    target = Path(os.path.realpath(path))
    folder = target.with_name(f".{target.name}.entrokern")
    with _writing(path):
        lock = _locked(folder, path)
    work = Work(path, folder, names, request, state)
    left = True  # whether the folder is left as it is
    try:
        if resume:
            work.resume()
        else:
            with _writing(path):
                _clear(folder)
        left = False
        yield work
        work.finish(shape)
    except BaseException as error:
        if resumable and not left and not isinstance(error, Unresumable):
            hint = work.keep()
            left = bool(hint)
            if hint:
                error.add_note(hint)
        raise
    finally:
        work.close()
        if not left:
            with suppress(OSError):
                _clear(folder)
                os.unlink(folder / LOCK)
                folder.rmdir()
        os.close(lock)


def _locked(folder: Path, path: str) -> int:
    """Make the folder and lock it: one run at a time writes a file."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a run that has ended just now has taken the folder away
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise InputError(f"another run is writing {path}; wait for it, or write another file") from None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                return lock
            os.close(lock)
            raise
        os.close(lock)


def _clear(folder: Path) -> None:
    """Delete what is in the folder, the journal first, all but the lock."""
    for name in sorted(os.listdir(folder), key=lambda name: name != JOURNAL):
        if name != LOCK:
            os.unlink(folder / name)


def _write(spool: int, column: Array) -> None:
    view = memoryview(column.view(np.uint8).data)
    while view:
        view = view[os.write(spool, view) :]


@contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of a full disk it does not say which file
        raise InputError(f"cannot write {path}: {error.strerror or one_line(error)}") from None


class _Unpickler(pickle.Unpickler):
    """Makes only what a journal holds: our own records and arrays. A folder that others can write to runs no code."""

    def find_class(self, module: str, name: str) -> Any:
        ours, numpys = module.startswith("entrokern."), module.startswith("numpy")
        found = super().find_class(module, name) if ours or numpys else None
        if (ours and isinstance(found, type)) or (numpys and name in ARRAY_MAKERS):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} does not belong there")


def _loaded(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        journal: dict[str, Any] = _Unpickler(io.BytesIO(data)).load()
        journal["request"], journal["rows"], journal["kept"], journal["dtypes"], journal["state"]
    except FileNotFoundError:
        raise
    except Exception:  # whatever comes of bytes that are no journal
        raise _damaged(path) from None
    return journal


def _damaged(path: Path) -> InputError:
    return InputError(f"--resume: {path} is damaged; leave --resume out to begin anew")

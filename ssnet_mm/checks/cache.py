"""Facts about files that have not changed since they were read, kept between runs."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

from ssnet_mm.checks.facts import Facts, Reader

_TABLE = 'facts_3'  # counted up where Facts or their meaning change
State = tuple[int, int]  # of a file: size in bytes, time of change in ns


def cache_file() -> Path:
    """``$XDG_CACHE_HOME/ssnet_mm/data.sqlite``, by default below ``~/.cache``."""
    folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(folder) / 'ssnet_mm' / 'data.sqlite'


class Cache:
    """Facts by a file's path and reader, valid for its size and time of change.

    Where the cache can't be read or written, facts are kept in memory only.
    """

    def __init__(self) -> None:
        self._new: dict[tuple[bytes, str], tuple[State, Facts]] = {}
        self._database: sqlite3.Connection | None = None
        try:
            path = cache_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=10)  # other runs may be writing
            self._database.execute(
                f'CREATE TABLE IF NOT EXISTS {_TABLE} (path BLOB, reader TEXT, size INTEGER, '
                'mtime INTEGER, facts TEXT, PRIMARY KEY (path, reader)) WITHOUT ROWID'
            )
        except (OSError, sqlite3.Error):
            self._database = None

    def get(self, path: str, reader: Reader, state: State) -> Facts | None:
        """What is known of a file, if it has not changed."""
        key = os.fsencode(path), _key(reader)  # a name may be no text
        if key in self._new:
            return self._new[key][1] if self._new[key][0] == state else None
        if self._database is None:
            return None
        try:
            row = self._database.execute(
                f'SELECT size, mtime, facts FROM {_TABLE} WHERE path = ? AND reader = ?', key
            ).fetchone()
        except sqlite3.Error:
            return None
        if row is None or row[:2] != state:
            return None
        stored = json.loads(row[2])
        pairs = {key: tuple(stored[key]) for key in ('size', 'stored_size')}
        return Facts(**{**stored, **pairs})

    def put(self, path: str, reader: Reader, state: State, facts: Facts) -> None:
        """Remember a file."""
        self._new[os.fsencode(path), _key(reader)] = state, facts
        if self._database is not None and len(self._new) >= 2000:
            self._save()  # so that an interrupted look goes on from here

    def close(self) -> None:
        """Write what is new, and let go of the file."""
        self._save()
        if self._database is not None:
            self._database.close()

    def _save(self) -> None:
        if self._database is None:
            return
        rows = [
            (*key, *state, json.dumps(vars(facts))) for key, (state, facts) in self._new.items()
        ]
        try:
            with self._database:  # one transaction: the file is locked for that long only
                self._database.executemany(
                    f'INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?)', rows
                )
            self._new.clear()
        except sqlite3.Error:  # the disk is full, or another run holds the file for too long
            self._database.close()
            self._database = None


def _key(reader: Reader) -> str:
    return f'{reader.kind} {reader.backend} {reader.flag}'

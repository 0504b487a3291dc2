"""Facts about files that have not changed since they were read, kept between runs."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

from ssnet_mm.checks.facts import Facts, Reader

_VERSION = 1  # of what is stored; counted up where Facts or their meaning change
_SIZE_MTIME = tuple[int, int]


def cache_file() -> Path:
    """``$XDG_CACHE_HOME/ssnet_mm/data.sqlite``, by default below ``~/.cache``."""
    folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(folder) / 'ssnet_mm' / 'data.sqlite'


class Cache:
    """Facts by a file's path and reader, valid for its size and time of change.

    Where the cache can't be read or written, facts are kept in memory only.
    """

    def __init__(self) -> None:
        self._unsaved = 0
        try:
            path = cache_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open(path)
        except (OSError, sqlite3.Error):
            self._open(':memory:')

    def _open(self, path: str | Path) -> None:
        self._database = sqlite3.connect(path, timeout=10)  # other runs may be writing
        self._table = f'facts_{_VERSION}'
        self._database.execute(
            f'CREATE TABLE IF NOT EXISTS {self._table} (path TEXT, reader TEXT, size INTEGER, '
            'mtime INTEGER, facts TEXT, PRIMARY KEY (path, reader)) WITHOUT ROWID'
        )

    def get(self, path: str, reader: Reader, state: _SIZE_MTIME) -> Facts | None:
        """What is known of a file, if it has not changed."""
        try:
            row = self._database.execute(
                f'SELECT size, mtime, facts FROM {self._table} WHERE path = ? AND reader = ?',
                (path, _key(reader)),
            ).fetchone()
        except sqlite3.Error:
            return None
        if row is None or row[:2] != state:
            return None
        stored = json.loads(row[2])
        pairs = {key: tuple(stored[key]) for key in ('size', 'stored_size')}
        return Facts(**{**stored, **pairs})

    def put(self, path: str, reader: Reader, state: _SIZE_MTIME, facts: Facts) -> None:
        """Remember a file."""
        try:
            self._database.execute(
                f'INSERT OR REPLACE INTO {self._table} VALUES (?, ?, ?, ?, ?)',
                (path, _key(reader), *state, json.dumps(vars(facts))),
            )
            self._unsaved += 1
            if self._unsaved >= 1000:  # an interrupted look goes on where it stopped
                self.save()
        except sqlite3.Error:  # the disk is full, or another run holds the file for too long
            self._open(':memory:')

    def save(self) -> None:
        """Write what was remembered since the last time."""
        self._unsaved = 0
        try:
            self._database.commit()
        except sqlite3.Error:
            self._open(':memory:')

    def close(self) -> None:
        """Write, and let go of the file."""
        self.save()
        self._database.close()


def _key(reader: Reader) -> str:
    return f'{reader.kind} {reader.backend} {reader.flag}'

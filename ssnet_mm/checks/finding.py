"""What a check is, and what it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ssnet_mm.errors import few

Severity = Literal['error', 'note']


def number(value: float) -> str:
    """A value of a mask as text: 70000, 0.5."""
    return str(int(value)) if value % 1 == 0 else f'{value:g}'


@dataclass(frozen=True)
class Fault:
    """One file, line or class at fault.

    Args:
        name: What to call it in a message: mostly a path, with what is particular to it.
        values: Pixels by the value at fault.
    """

    name: str
    values: Mapping[float, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One kind of fault of data.

    Args:
        name: As docs/data.md lists it.
        severity: 'error' where it spoils training or scores, 'note' where it may be meant.
        what: What is wrong; ``{num_classes}``, ``{last}`` (class) and ``{void}`` are filled in.
        mend: How to put it right; the same are filled in.
        find: Yields the faults in what :mod:`ssnet_mm.checks.table` says: a sample, or a data set's
            list or totals. Over all data sets of a config it yields each with the one it is in.
    """

    name: str
    severity: Severity
    what: str
    mend: str
    find: Callable[[Any], Iterable[Any]]


@dataclass
class Finding:
    """All faults of one kind in one data set; grows as samples go by, by counts alone."""

    check: Check
    where: str
    what: str
    mend: str
    names: list[str] = field(default_factory=list)  # the first ones
    count: int = 0
    values: Counter[float] = field(default_factory=Counter)

    def add(self, fault: Fault) -> None:
        """Count a fault in."""
        self.count += 1
        self.values.update(fault.values)
        if len(self.names) <= 3:  # one more than a message shows
            self.names.append(fault.name)

    def __str__(self) -> str:
        parts = [f'{self.where}: {self.what}']
        if self.values:
            common = self.values.most_common(5)
            more = ', ...' if len(self.values) > 5 else ''
            parts.append(', '.join(f'{number(v)} ({n:,} pixels)' for v, n in common) + more)
        times = f' ({self.count} in all)' if self.count > 1 else ''
        return f'{": ".join(parts)}: {few(self.names)}{times}; {self.mend}'

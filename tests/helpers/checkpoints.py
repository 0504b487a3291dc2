"""Checkpoints that nobody should load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return self.call

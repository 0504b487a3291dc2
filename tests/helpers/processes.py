"""Commands in processes of their own."""

from __future__ import annotations

import subprocess
from typing import Any


def run(*command: object, **kwargs: Any) -> str:
    """Run a command and return what it printed; its whole output is shown where it fails."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **kwargs
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout

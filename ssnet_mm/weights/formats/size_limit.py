"""How much a foreign file may ask for."""

from __future__ import annotations

import os

from ssnet_mm.errors import UserError

# The largest net there is a reason to read, FCN8 at full width with two moments of an optimizer
# beside its weights, has 1.5 GiB.
LIMIT = 4 << 30
# Trained weights hardly compress; what is much larger than its file is a mistake or an attack.
# Small files are free of this: in a toy net nearly all may be zeros.
RATIO = 20
FREE = 64 << 20


def check_size(path: str, declared: int) -> None:
    """Refuse a file that declares far more bytes than weights need or its size explains.

    To be asked before anything of that size is allocated.

    Raises:
        UserError: It does.
    """
    allowed = min(LIMIT, max(FREE, RATIO * os.path.getsize(path)))
    if declared > allowed:
        raise UserError(
            f'{path} is refused: it unpacks to {declared / 2**20:,.0f} MiB, more than the '
            f'{allowed / 2**20:,.0f} MiB that weights in a file of its size can need; '
            'save the weights anew, alone and without compression'
        )


def damaged(path: str, error: object) -> UserError:
    """What to tell of a file that a parser fails on."""
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    return UserError(f'{path} is damaged or cut short ({reason}); copy or save it again')

"""Devices of torch."""

from __future__ import annotations

import torch

from ssnet_mm.errors import UserError, first_line


def check_device(device: str | None) -> str:
    """A device that torch can use, or a UserError; None takes CUDA where there is some."""
    count = torch.cuda.device_count()
    if device is None:
        return 'cuda:0' if count else 'cpu'
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'torch knows no device {device}; take cpu or cuda:0') from error
    if parsed.type == 'cuda' and (parsed.index or 0) >= count:
        raise UserError(f'device {device}: torch finds {count} CUDA devices here; take cpu')
    try:
        torch.zeros(1, device=parsed).tolist()  # one that holds nothing can't
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError
        raise UserError(
            f'device {device}: torch can not use it here ({first_line(error)}); take cpu'
        ) from error
    return device

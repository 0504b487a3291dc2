"""Checks of data: what would spoil training or scores is told before them."""

from .report import Report, check_lists, check_names, check_splits
from .scan import Split
from .sheet import contact_sheet
from .table import CHECKS

__all__ = [
    'CHECKS', 'Report', 'Split', 'check_lists', 'check_names', 'check_splits', 'contact_sheet',
]  # fmt: skip

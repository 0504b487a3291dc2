"""What can be known to fail before a Runner exists, and so before anything is written."""

from ssnet_mm.engine.preflight.prepare import Prepared, is_first_process, preflight

__all__ = ['Prepared', 'is_first_process', 'preflight']

"""Test (and evaluate) a segmentor.

The same as ``ssnet_mm test``; see :mod:`ssnet_mm.commands.test`.
"""

from ssnet_mm.commands import script

parse_args, main = script('test')

if __name__ == '__main__':
    main()

"""Read every image and mask that a config names, and say what would spoil training or scores.

The same as ``ssnet_mm check``; see :mod:`ssnet_mm.commands.check`.
"""

from ssnet_mm.commands import script

parse_args, main = script('check')

if __name__ == '__main__':
    main()

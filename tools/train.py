"""Train a segmentor from a config file.

The same as ``ssnet_mm train``; see :mod:`ssnet_mm.commands.train`.
"""

from ssnet_mm.commands import script

parse_args, main = script('train')

if __name__ == '__main__':
    main()

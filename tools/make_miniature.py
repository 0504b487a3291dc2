"""Draw the miniature data set: VOC's layout and 21 classes, made in seconds.

The same as ``ssnet_mm miniature``; see :mod:`ssnet_mm.commands.miniature`.
"""

from ssnet_mm.commands import script

parse_args, main = script('miniature')

if __name__ == '__main__':
    main()

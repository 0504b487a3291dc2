"""From photos and masks to a trained, tested and exported network, and a report of it.

The same as ``ssnet_mm fit``; see :mod:`ssnet_mm.commands.fit`.
"""

from ssnet_mm.commands import script

parse_args, main = script('fit')

if __name__ == '__main__':
    main()

"""Put photos and their annotations into the layout of Pascal VOC, checked and split.

The same as ``ssnet_mm prepare``; see :mod:`ssnet_mm.commands.prepare`.
"""

from ssnet_mm.commands import script

parse_args, main = script('prepare')

if __name__ == '__main__':
    main()

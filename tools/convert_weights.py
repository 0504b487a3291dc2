"""Turn VGG16 or FCN weights of another origin into a checkpoint of ours.

The same as ``ssnet_mm convert``; see :mod:`ssnet_mm.commands.convert`.
"""

from ssnet_mm.commands import script

parse_args, main = script('convert')

if __name__ == '__main__':
    main()

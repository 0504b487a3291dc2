"""Draw image, truth and prediction side by side for some of a config's validation images.

The same as ``ssnet_mm show``; see :mod:`ssnet_mm.commands.show`.
"""

from ssnet_mm.commands import script

parse_args, main = script('show')

if __name__ == '__main__':
    main()

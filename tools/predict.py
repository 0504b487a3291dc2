"""Segment images or a video with a checkpoint or an exported model.

The same as ``ssnet_mm predict``; see :mod:`ssnet_mm.commands.predict`.
"""

from ssnet_mm.commands import script

parse_args, main = script('predict')

if __name__ == '__main__':
    main()

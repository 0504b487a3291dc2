"""Compare segmentors side by side: parameters, multiply-adds, latency, images a second, memory.

The same as ``ssnet_mm benchmark``; see :mod:`ssnet_mm.commands.benchmark`.
"""

from ssnet_mm.commands import script

parse_args, main = script('benchmark')

if __name__ == '__main__':
    main()

"""``python -m ssnet_mm`` is the command ``ssnet_mm``."""

import sys

from ssnet_mm.commands import main

if __name__ == '__main__':
    sys.argv[0] = 'ssnet_mm'  # what messages begin with
    main()

"""Export a checkpoint to one file for ONNX Runtime, OpenVINO, torch.export or a browser.

The same as ``ssnet_mm export``; see :mod:`ssnet_mm.commands.export`.
"""

from ssnet_mm.commands import script

parse_args, main = script('export')

if __name__ == '__main__':
    main()

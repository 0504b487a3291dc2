"""Put photos and their annotations into the layout of Pascal VOC, checked and split."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ssnet_mm.errors import exit_on_user_error
from ssnet_mm.prepare import command


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=command.EPILOG)
    command.add_arguments(parser)
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    command.main(parse_args(argv))


if __name__ == '__main__':
    main()

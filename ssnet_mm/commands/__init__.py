"""The command ``ssnet_mm``, whose parts are what the scripts in ``tools/`` run.

A command is a module with ``add_arguments(parser)`` and ``main(args)``, and a row of
:data:`COMMANDS`; ``check_arguments(args)`` may refuse what does not go together. A module is
imported when it is called, torch and the toolbox only when the arguments are read: help and wrong
usage answer at once. So a module imports what is heavy in its ``main``.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from ssnet_mm.commands.output import go_on_unread, output
from ssnet_mm.errors import UserError, exit_on_user_error
from ssnet_mm.version import __version__


class Command(NamedTuple):
    """A row of the table."""

    module: str
    help: str  # one line
    toolbox: bool = True  # whether it needs torch and the toolbox, whatever its arguments
    lasting: bool = False  # whether it goes on when nobody reads what it prints any more


COMMANDS = {
    'fit': Command(
        'ssnet_mm.commands.fit', 'photos and masks in, a trained net and a report out', lasting=True
    ),
    'prepare': Command(
        'ssnet_mm.commands.prepare',
        'make a data set of photos and annotations',
    ),
    'check': Command('ssnet_mm.commands.check', 'read the images and masks, and say what is wrong'),
    'train': Command('ssnet_mm.commands.train', 'train a config', lasting=True),
    'test': Command('ssnet_mm.commands.test', 'score a checkpoint, with a report of each class'),
    'predict': Command(
        'ssnet_mm.commands.predict', 'segment images, a video or a camera', toolbox=False
    ),
    'export': Command('ssnet_mm.commands.export', 'write ONNX, OpenVINO or torch.export'),
    'benchmark': Command('ssnet_mm.commands.benchmark', 'time networks side by side'),
    'convert': Command('ssnet_mm.commands.convert', "take over other people's weights"),
    'show': Command('ssnet_mm.commands.show', 'draw image, truth and prediction side by side'),
    'plot': Command('ssnet_mm.commands.plot', 'draw the curves of runs', toolbox=False),
    'miniature': Command(
        'ssnet_mm.commands.miniature', 'draw a small data set to try things on', toolbox=False
    ),
}

# What the stacks print and warn of whatever is run.
_NOISE = (
    'Could not import OneDL',
    'Fail to import ``MultiScaleDeformableAttention``',
    'Default ``avg_non_ignore`` is False',
    '`torch.jit.script_method` is deprecated',
    'For binary segmentation, we suggest using',
    'The draw is False, it means that the hook for visualization',
)


def parser_of(command: str, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command's arguments.

    Args:
        command: A key of ``COMMANDS``.
        prog: What it is called in messages; by default the script's name.
    """
    module = import_module(COMMANDS[command].module)
    parser = argparse.ArgumentParser(
        prog=prog,
        description=inspect.getdoc(module),
        epilog=getattr(module, 'EPILOG', None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def _run(command: str, argv: Sequence[str] | None, prog: str | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    args = parser_of(command, prog).parse_args([_at_home(word) for word in words])
    module = import_module(COMMANDS[command].module)
    if hasattr(module, 'check_arguments'):
        module.check_arguments(args)
    go_on_unread(COMMANDS[command].lasting)
    if COMMANDS[command].toolbox:
        load_toolbox()
    module.main(args)


def _at_home(word: str) -> str:
    """An argument as ``--out=~/x`` with the home folder: shells leave it, and ./~ would be made."""
    option, _, value = word.partition('=')
    return f'{option}={os.path.expanduser(value)}' if word.startswith('--') and value else word


def load_toolbox() -> None:
    """Import the toolbox and register our parts in it, which takes seconds.

    Raises:
        UserError: It is not installed.
    """
    import ssnet_mm

    for message in _NOISE:
        warnings.filterwarnings('ignore', message)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            ssnet_mm.register()
    except ImportError as error:
        if isinstance(error, ssnet_mm.ToolboxMissing):
            raise UserError(str(error)) from error
        raise
    finally:
        said = printed.getvalue().splitlines(keepends=True)
        sys.stdout.write(''.join(line for line in said if line.strip() not in _NOISE))


@exit_on_user_error
@output()
def main(argv: Sequence[str] | None = None) -> None:
    """Run ``ssnet_mm COMMAND ...``; exit code 2 and one line where the input is at fault."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith('-'):
        if argv[0] not in COMMANDS:
            near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
            meant = f'did you mean {near[0]}? ' if near else ''
            raise UserError(f'no command {argv[0]}; {meant}ssnet_mm --help lists them')
        return _run(argv[0], argv[1:], f'ssnet_mm {argv[0]}')
    width = max(map(len, COMMANDS))
    listed = '\n'.join(f'  {name:{width}}  {row.help}' for name, row in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='ssnet_mm',
        usage='ssnet_mm COMMAND ...   (ssnet_mm COMMAND --help)',
        description='FCN8 and FastFCN8 for MMSegmentation.',
        epilog=f'commands:\n{listed}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'ssnet_mm {__version__}')
    parser.parse_args(argv)
    parser.print_help(sys.stderr)
    sys.exit(2)


Parse = Callable[[Sequence[str] | None], argparse.Namespace]
Main = Callable[[Sequence[str] | None], None]


def script(command: str) -> tuple[Parse, Main]:
    """``parse_args`` and ``main`` of a script in ``tools/`` that runs a command."""

    def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
        return parser_of(command, os.path.basename(sys.argv[0])).parse_args(argv)

    @exit_on_user_error
    @output()
    def main(argv: Sequence[str] | None = None) -> None:
        _run(command, argv, os.path.basename(sys.argv[0]))

    return parse_args, main

"""Where the configs of this package lie, and which there are."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ssnet_mm.errors import UserError

_HERE = Path(__file__).resolve().parent


def configs_folder() -> Path | None:
    """In an installed package, or in the checkout around it; None if there is neither."""
    for folder in (_HERE / '.mim' / 'configs', _HERE.parent / 'configs'):
        if (folder / 'metafile.yml').is_file():
            return folder
    return None


def config_names() -> list[str]:
    """As ``fastfcn8_voc``."""
    folder = configs_folder()
    return sorted(path.stem for path in folder.glob('*.py')) if folder else []


def find_config(name: str) -> str:
    """The file that a path or the name of one of our configs stands for.

    A file comes first. The suffix may be left out of a name.

    Raises:
        UserError: There is neither; names what may be meant.
    """
    if os.path.isfile(name):
        return name
    folder, names = configs_folder(), config_names()
    bare = name.removesuffix('.py')
    if folder and bare in names:
        return str(folder / f'{bare}.py')
    near = difflib.get_close_matches(Path(bare).name, names, n=3)
    meant = f'; ssnet_mm has {", ".join(near)}, which need no path' if near else ''
    raise UserError(f'config {name} not found{meant or "; check the path"}')

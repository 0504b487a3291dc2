"""How much a file may ask for, told by what it declares, before memory is spent on it.

The limits stand in docs/security.md.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zipfile
from contextlib import suppress
from itertools import chain
from typing import IO, Any

from PIL import Image

from ssnet_mm.errors import UserError

# Of weights. The largest net there is a reason to read, FCN8 at full width with two moments of an
# optimizer beside its weights, has 1.5 GiB.
LIMIT = 4 << 30
# Trained weights hardly compress; what is much larger than its file is a mistake or an attack.
# Small files are free of this: in a toy net nearly all may be zeros.
RATIO = 20
FREE = 64 << 20

# Bytes of JSON beside weights or in an exported file, which as Python objects take thirty times as
# much; Keras' description of a network has some 100 KB.
JSON = 16 << 20

# Of an image: Pillow warns beyond, and a network takes kilobytes for each.
MAX_PIXELS = 89_478_485
# What is opened as an image, and how such files are named. Pillow knows more: for one of them it
# starts another program.
IMAGE_FORMATS = {
    'BMP': ('.bmp', '.dib'),
    'GIF': ('.gif',),
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo'),
    'PNG': ('.png', '.apng'),
    'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
}
IMAGE_SUFFIXES = tuple(chain.from_iterable(IMAGE_FORMATS.values()))
# EXIF's orientation, and what turns the stored pixels upright; Pillow's exif_transpose() has these,
# and writes the other EXIF data anew, which fails on what cameras and editors leave there
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # tag of EXIF and of TIFF
_PILLOWS_LIMIT = threading.Lock()  # who may switch it off
if hasattr(os, 'register_at_fork'):  # not on Windows
    os.register_at_fork(
        before=_PILLOWS_LIMIT.acquire,
        after_in_parent=_PILLOWS_LIMIT.release,
        after_in_child=_PILLOWS_LIMIT.release,
    )


def check_size(path: str, declared: int) -> None:
    """Refuse a file that declares far more bytes than weights need or its size explains.

    To be asked before anything of that size is allocated.

    Raises:
        UserError: It does.
    """
    allowed = min(LIMIT, max(FREE, RATIO * os.path.getsize(path)))
    if declared > allowed:
        raise UserError(
            f'{path} is refused: it unpacks to {declared / 2**20:,.0f} MiB, more than the '
            f'{allowed / 2**20:,.0f} MiB that weights in a file of its size can need; '
            'save the weights anew, alone and without compression'
        )


def damaged(path: str, error: object) -> UserError:
    """What to tell of a file that a parser fails on."""
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    return UserError(f'{path} is damaged or cut short ({reason}); copy or save it again')


def parse_json(text: str | bytes, limit: int = JSON) -> Any:
    """Parse JSON of limited length.

    Raises:
        ValueError: It is none, too long, or nested too deep.
    """
    if len(text) > limit:
        raise ValueError(f'{len(text) >> 20} MiB of JSON, where {limit >> 20} MiB are the limit')
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError('JSON nested too deep') from error


def stored_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip archive as torch writes them: uncompressed, from the file's first byte.

    Other readers than Python's then see the same members, and together they are no larger than the
    file.

    Raises:
        ValueError: It is another archive.
    """
    members = {member.filename: member for member in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise ValueError('it holds a name twice')
    compressed = next((n for n, m in members.items() if m.compress_type != zipfile.ZIP_STORED), '')
    if compressed:
        raise ValueError(f'{compressed} is compressed')
    if sum(member.file_size for member in members.values()) > size:
        raise ValueError('its members overlap')
    if min((member.header_offset for member in members.values()), default=0):
        raise ValueError('the archive does not begin where the file does')
    return members


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a pipe or a device, which might never end."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def check_regular(path: str | os.PathLike[str]) -> None:
    """ValueError where a name is that of a pipe or a device."""
    if is_stream(path):
        raise ValueError('it is no file but a pipe or a device')


def open_image(source: str | os.PathLike[str] | IO[bytes], max_pixels: int | None) -> Image.Image:
    """Open an image of a usual format; its pixels are not read yet.

    Args:
        source: A file or its name.
        max_pixels: How many it may declare; None for any number.

    Raises:
        ValueError: They are more, or it is no regular file, which a pipe would be waited for. What
            Pillow raises otherwise is not documented.
    """
    if isinstance(source, (str, os.PathLike)):
        check_regular(source)
    image: Image.Image
    try:
        image = Image.open(source, formats=tuple(IMAGE_FORMATS))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        image = _open_unlimited(source)
    if max_pixels is not None and image.width * image.height > max_pixels:
        image.close()
        raise ValueError(
            f'{image.width}x{image.height} pixels, the limit is {max_pixels / 1e6:.1f} million; '
            'to allow them set max_pixels (--max-pixels)'
        )
    read_unmapped(image)
    return image


def _open_unlimited(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Open what has more pixels than Pillow allows; the limit here is the caller's.

    Pillow's is one for all threads, so it is off for no longer than a header takes, and no process
    is forked meanwhile.
    """
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source, formats=tuple(IMAGE_FORMATS))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def read_unmapped(image: Image.Image) -> None:
    """Have Pillow read the pixels of a TIFF file that it has opened, not map the file.

    Pillow 13 takes rows for columns in mapped ones that are stored lying on their side. Nor is it
    to turn pixels by what XMP alone says of their orientation: OpenCV does not.
    """
    if image.format == 'TIFF':
        image.filename = ''  # type: ignore[attr-defined]  # without one it can not be mapped
        orientation = image.tag_v2.get(_ORIENTATION, 1)  # type: ignore[attr-defined]
        image.getexif()[_ORIENTATION] = orientation


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, as OpenCV reads it; 1 where there is none, or a broken one.

    Of a TIFF file it is 1: Pillow turns its pixels as it reads them.
    """
    with suppress(Exception):  # what is broken in EXIF is ignored by decoders, too
        if image.format == 'PNG' and 'exif' not in image.info:
            image.load()  # it may stand behind the pixels
        data = image.info['exif']
        if image.format != 'WEBP':  # in which this header makes it none for OpenCV
            data = data.removeprefix(b'Exif\0\0')
        order = {b'II*\0': '<', b'MM\0*': '>'}[data[:4]]
        (start,) = struct.unpack_from(f'{order}I', data, 4)
        (count,) = struct.unpack_from(f'{order}H', data, start)
        for i in range(count):
            tag, _, _, value = struct.unpack_from(f'{order}HHIH', data, start + 2 + 12 * i)
            if tag == _ORIENTATION:
                return value if value in TURNS else 1
    return 1

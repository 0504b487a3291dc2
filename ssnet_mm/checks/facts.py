"""What a file of a data set is: read once, as the data set's own pipeline reads it.

Pillow tells damage that OpenCV passes over (it fills up a JPEG that is cut short), and what is
stored: format, mode, depth, orientation. Where the two may differ in what they make of a file, the
toolbox's own reader is asked.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import IO, Any, Literal

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ssnet_mm.limits import MAX_PIXELS, is_stream, open_image, orientation_of

# In these OpenCV reads pixels as Pillow does; others are read by the toolbox itself, to be sure.
_COMMON_FORMATS = ('BMP', 'JPEG', 'MPO', 'PNG', 'PPM', 'TIFF', 'WEBP')
_COMMON_MODES = ('1', 'L', 'P', 'RGB', 'RGBA')
_MAX_VALUES = 512  # kept of a mask: enough for any set of classes, and for a message on the rest
_TOO_LARGE = (
    f'has more than {MAX_PIXELS / 1e6:.0f} million pixels (shrink it, or cut it into several)'
)
_NO_FILE = 'is no file but a pipe or a device'
# what people save under a photo's name by mistake
_TEXTS = {b'version https://git-lfs': 'a Git LFS pointer (git lfs pull)', b'<': 'HTML or XML'}


@dataclass(frozen=True)
class Reader:
    """How a pipeline reads one kind of file.

    Args:
        kind: 'image' or 'mask'; 'other' where a transform reads that is not known here, and nothing
            can be said but that the file exists.
        backend: mmcv's decoder.
        flag: What mmcv is asked for; of a mask always 'unchanged'.
    """

    kind: Literal['image', 'mask', 'other']
    backend: str = 'cv2'
    flag: str = 'color'


@dataclass(frozen=True)
class Facts:
    """What was found out about a file.

    Sizes are (width, height).
    """

    problem: str = ''  # why it can't be used; nothing else is known then
    missing: bool = False  # the problem is that there is no such file
    format: str = ''  # Pillow's name, as in 'PNG'; empty if Pillow doesn't know it
    mode: str = ''  # Pillow's
    bits: int = 8  # a channel
    size: tuple[int, int] = (0, 0)  # as it is read
    stored_size: tuple[int, int] = (0, 0)  # before EXIF's orientation is applied
    orientation: int = 1  # EXIF's: of an image the one applied, of a mask the one left aside
    digest: str = ''  # of the whole file
    cut: bool = False  # an image of more than 8 bits that is read as 8
    brightest: int = 255  # ... and the largest value as it is read
    flat: bool = False  # an image of a single colour
    transparent: bool = False  # an image with pixels that aren't opaque
    colour: bool = False  # a mask that is read as several channels
    grey: bool = False  # ... which are all the same
    # stored values of a mask with their number of pixels; pairs, since JSON has no such dict
    values: list[tuple[float, int]] = field(default_factory=list)
    # ... and with the colours, as #rrggbb, that a palette gives them
    colours: list[tuple[float, str]] = field(default_factory=list)


def transforms_of(pipeline: Any) -> Iterator[Any]:
    """The transforms of a built pipeline, those inside others (TestTimeAug's, ...) too."""
    for transform in getattr(pipeline, 'transforms', pipeline):
        yield transform
        for name in ('transforms', 'subroutines'):
            inner = getattr(transform, name, None)
            if inner is not None:
                yield from transforms_of(inner)


def readers_of(pipeline: Any) -> tuple[Reader | None, Reader | None]:
    """How a built pipeline reads images and masks; None for what it does not read."""
    image = mask = None
    for transform in transforms_of(pipeline):
        name = type(transform).__name__
        if type(transform) is LoadImageFromFile:
            image = image or Reader('image', transform.imdecode_backend, transform.color_type)
        elif type(transform) is LoadAnnotations:
            mask = mask or Reader('mask', transform.imdecode_backend, 'unchanged')
        elif name.startswith('Load') and 'Anno' in name:
            mask = mask or Reader('other')
        elif name.startswith('Load'):
            image = image or Reader('other')
    return image, mask


def read_facts(path: str, reader: Reader) -> Facts:
    """Read a file whole and say what it is; any fault is told in ``problem``."""
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            return Facts(problem=_NO_FILE)
        if reader.kind == 'other':
            data = b'' if status.st_size == 0 else None
        else:
            with open(path, 'rb') as file:
                data = file.read()
    except OSError as error:
        return Facts(problem=_why(path, error), missing=isinstance(error, FileNotFoundError))
    if data is None:
        return Facts(problem='is a folder' if os.path.isdir(path) else '')
    return facts_of(data, reader)


def unfit(path: str) -> str:
    """Why a decoder must not be given a file, as its header tells; empty where it may be."""
    try:
        if is_stream(path):
            return _NO_FILE
        if os.path.isfile(path):
            _open(path).close()
    except _NotReadError as error:
        return str(error)
    except Exception:  # damaged, or of a kind that only the decoder reads
        return ''
    return ''


def facts_of(data: bytes, reader: Reader) -> Facts:
    """What a file's content is; as ``read_facts``."""
    if not data:
        return Facts(problem='is empty (0 bytes)')
    try:
        facts = _read_image(data, reader) if reader.kind == 'image' else _read_mask(data, reader)
    except Exception as error:  # decoders raise all kinds
        return Facts(problem=_damage(data, error))
    if facts.format in ('JPEG', 'MPO') and _padded(data):
        return Facts(problem='is damaged: its end is filled with zeros')
    return replace(facts, digest=blake2b(data, digest_size=12).hexdigest())


def _why(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return 'is a link to nothing' if os.path.islink(path) else 'not found'
    if isinstance(error, IsADirectoryError) or os.path.isdir(path):
        return 'is a folder'
    if error.errno == errno.EACCES:
        return 'may not be read (permission)'
    return f"can't be read: {error.strerror or error}"


def _damage(data: bytes, error: Exception) -> str:
    for start, what in _TEXTS.items():
        if data.lstrip().startswith(start):
            return f'is {what}, not an image'
    if isinstance(error, UnidentifiedImageError):
        return 'is not an image'
    if isinstance(error, _NotReadError):
        return str(error)
    message = ' '.join(str(error).split())
    return f'is cut short or damaged ({message or type(error).__name__})'


def _padded(data: bytes) -> bool:
    """Whether a JPEG lost its end to zeros, as an interrupted copy leaves it; decoders accept."""
    rest = data.rstrip(b'\0')
    return len(data) - len(rest) >= 512 and not rest.endswith(b'\xff\xd9')  # its end marker


class _NotReadError(Exception):
    """A decoder gives nothing, and no reason."""


def _open(source: str | IO[bytes]) -> Image.Image:
    """Open an image that decoders may be given: they would take the memory that it declares."""
    picture = open_image(source, None)
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise _NotReadError(_TOO_LARGE)
    return picture


def _decode(data: bytes, reader: Reader) -> NDArray[Any]:
    array = mmcv.imfrombytes(data, flag=reader.flag, backend=reader.backend)
    if array is None:
        raise _NotReadError(f'is not read by {reader.backend}')
    return array


def _header(picture: Image.Image, data: bytes) -> Facts:
    bits = {'1': 1, 'I': 32, 'F': 32}.get(picture.mode, 16 if '16' in picture.mode else 8)
    if picture.format == 'PNG':
        bits = data[24]  # Pillow hides 16-bit colours and 2 and 4-bit greys
    elif picture.format == 'TIFF':
        bits = max(picture.tag_v2.get(258, (bits,)))  # type: ignore[attr-defined]
    return Facts(
        format=picture.format or '',
        mode=picture.mode,
        bits=bits,
        size=picture.size,
        stored_size=picture.size,
        orientation=orientation_of(picture),
    )


def _read_image(data: bytes, reader: Reader) -> Facts:
    try:
        picture = _open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        try:
            array = _decode(data, reader)  # of a kind that only the toolbox reads
        except Exception:
            raise error from None
        size = array.shape[1], array.shape[0]
        return Facts(bits=8 * array.dtype.itemsize, size=size, stored_size=size)
    facts = _header(picture, data)
    turns = reader.backend in ('cv2', 'pillow') and reader.flag in ('color', 'grayscale')
    if not turns:
        facts = replace(facts, orientation=1)
    if facts.format in ('JPEG', 'MPO'):  # an eighth of the size: all is read, less computed
        picture.draft('L', (picture.width // 8 or 1, picture.height // 8 or 1))
    picture.load()  # raises where it is damaged
    bounds: Any = picture.getextrema()  # of each channel
    flat = all(low == high for low, high in (bounds if len(picture.getbands()) > 1 else [bounds]))
    transparent = 'A' in picture.getbands() and bounds[-1][0] < 255
    common = facts.format in _COMMON_FORMATS and facts.mode in _COMMON_MODES
    if not common or facts.orientation != 1 or facts.bits > 8:
        array = _decode(data, reader)
        facts = replace(facts, size=(array.shape[1], array.shape[0]))
        if facts.bits > 8 and array.dtype == np.uint8:
            facts = replace(facts, cut=True, brightest=int(array.max()))
    return replace(facts, transparent=transparent, flat=flat)


def pages_of(picture: Image.Image) -> int:
    """How many pictures a file holds; 1 of a photo with a preview of itself."""
    return 1 if picture.format == 'MPO' else getattr(picture, 'n_frames', 1)


def palette_colours(picture: Image.Image, numbers: Iterable[int]) -> dict[int, str]:
    """What a palette says of numbers, as #rrggbb; nothing without one, or where it ends before."""
    if picture.mode != 'P':
        return {}
    palette = bytes(picture.getpalette() or ())
    found = {number: palette[3 * number : 3 * number + 3].hex() for number in numbers}
    return {number: f'#{colour}' for number, colour in found.items() if colour}


def _read_mask(data: bytes, reader: Reader) -> Facts:
    picture = _open(io.BytesIO(data))
    facts = _header(picture, data)
    pages = pages_of(picture)
    if pages > 1:
        raise _NotReadError(f'holds {pages} pages, of which the first is read')
    array = np.asarray(picture) if reader.backend == 'pillow' else _decode(data, reader)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]  # LoadAnnotations squeezes
    size = array.shape[1], array.shape[0]
    facts = replace(facts, size=size, stored_size=size)
    if array.ndim == 3:
        colours = array[..., :3] if array.shape[2] >= 3 else array[..., :1]
        return replace(facts, colour=True, grey=bool((colours == colours[..., :1]).all()))
    if array.dtype == np.uint8:
        counts = np.bincount(array.ravel(), minlength=256)
        values: NDArray[Any] = counts.nonzero()[0]
        counts = counts[values]
    else:
        values, counts = np.unique(array, return_counts=True)
        values, counts = values[:_MAX_VALUES] * 1, counts[:_MAX_VALUES]  # bool becomes int
    pairs = list(zip(values.tolist(), counts.tolist()))
    painted = palette_colours(picture, values.tolist())
    return replace(facts, values=pairs, colours=[*painted.items()])

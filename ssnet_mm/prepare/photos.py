"""Photos as training reads them: upright, in one file format."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssnet_mm.checks.facts import Facts, Reader, facts_of
from ssnet_mm.limits import MAX_PIXELS, TURNS, open_image
from ssnet_mm.prepare.source import BadAnnotationError, Item, Mask, Size

_KEPT = {'jpg': ('JPEG', 'MPO'), 'png': ('PNG',)}  # formats whose files are taken as they are
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Photo:
    """A photo's content, and what it is."""

    data: bytes
    facts: Facts

    @property
    def turned(self) -> bool:
        """Whether EXIF turns it as it is read."""
        return self.facts.orientation != 1

    def small(self) -> NDArray[np.float32] | None:
        """A thumbnail, (16, 16), of grey values; None of what Pillow doesn't read."""
        try:
            with open_image(io.BytesIO(self.data), MAX_PIXELS) as picture:
                picture.draft('L', (64, 64))  # of a JPEG less is computed
                return np.asarray(picture.convert('L').resize((16, 16)), np.float32)
        except Exception:  # decoders raise all kinds
            return None


def read_photo(item: Item) -> Photo:
    """Read an item's photo whole.

    Raises:
        BadAnnotationError: It can't be used.
    """
    try:
        data = item.data() if item.data else item.image.read_bytes()
    except OSError as error:
        raise BadAnnotationError(f"can't be read ({error.strerror or error})") from error
    facts = facts_of(data, Reader('image'))
    if not facts.problem and facts.stored_size[0] * facts.stored_size[1] > MAX_PIXELS:
        raise BadAnnotationError(f'has more than {MAX_PIXELS / 1e6:.0f} million pixels; shrink it')
    if facts.problem:
        raise BadAnnotationError(f'{facts.problem}; fetch or save it again')
    return Photo(data, facts)


def encode(photo: Photo, suffix: str) -> tuple[bytes, bool]:
    """A photo's content as a file of a suffix, upright.

    Returns:
        The content, and whether it was encoded anew.
    """
    if photo.facts.format in _KEPT[suffix] and not photo.turned:
        return photo.data, False
    # as training reads it: turned upright, 8 bits, without transparency
    pixels = cv2.imdecode(np.frombuffer(photo.data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        with open_image(io.BytesIO(photo.data), MAX_PIXELS) as picture:
            image = picture.convert('RGB')
    else:
        image = Image.fromarray(pixels[..., ::-1])
    buffer = io.BytesIO()
    if suffix == 'png':
        image.save(buffer, 'PNG')
    else:
        image.save(buffer, 'JPEG', quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue(), True


def frame_of(item: Item, photo: Photo, exif: str) -> Size | None:
    """The size of the image that an annotation without pixels was made on; None: it may be either.

    ``exif`` is as for :func:`upright`.
    """
    if item.frame is not None:
        return item.frame
    facts = photo.facts
    if not photo.turned or exif:
        return facts.stored_size if exif == 'stored' else facts.size
    return None


def upright(mask: Mask, photo: Photo, exif: str) -> Mask:
    """A mask as it lies on the upright photo.

    Args:
        mask: (H, W).
        photo: Its photo.
        exif: 'upright' or 'stored': which of them masks were made on, where sizes do not tell.

    Raises:
        BadAnnotationError: It fits neither, or sizes do not tell.
    """
    facts, size = photo.facts, (mask.shape[1], mask.shape[0])
    if not photo.turned:
        if size != facts.size:
            raise BadAnnotationError(f'{_sizes(size, facts.size)}; give both the same size')
        return mask
    same = facts.size == facts.stored_size
    if size not in (facts.size, facts.stored_size):
        raise BadAnnotationError(f'{_sizes(size, facts.size)}; give both the same size')
    if same and not exif:
        raise BadAnnotationError(UNCLEAR)
    stored = exif == 'stored' if same else size == facts.stored_size
    if not stored:
        return mask
    return np.asarray(Image.fromarray(mask).transpose(TURNS[facts.orientation]))


UNCLEAR = (
    'EXIF turns the photo, and sizes do not tell whether the annotation was made on the turned or '
    'the stored one; say --exif upright or --exif stored'
)


def _sizes(mask: Size, image: Size) -> str:
    return f'is {mask[0]}x{mask[1]}, its photo {image[0]}x{image[1]}'

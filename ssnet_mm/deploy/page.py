"""A web page that segments images by itself: onnxruntime-web and an end-to-end network in one file.

The page (``page.html`` beside this module) resizes as the processor does, to the grey level, so
that its labels are those of a Segmenter with the same network.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ssnet_mm.deploy.check import Report
from ssnet_mm.deploy.export import export
from ssnet_mm.errors import UserError, first_line
from ssnet_mm.files import write_result

SUFFIX = '.html'
PRECISIONS = ('fp32', 'fp16')
VERSION = '1.30.0'  # of onnxruntime-web
_SHA512 = (
    'ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca'
    '590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61'
)
_PARTS = {
    'wasm-script': 'package/dist/ort.wasm.bundle.min.mjs',
    'wasm-binary': 'package/dist/ort-wasm-simd-threaded.wasm',
    'webgpu-script': 'package/dist/ort.webgpu.bundle.min.mjs',
    'webgpu-binary': 'package/dist/ort-wasm-simd-threaded.asyncify.wasm',
}
_TEMPLATE = Path(__file__).with_name('page.html')
_LARGEST = 300 << 20  # bytes of a network: browsers have a limit to what one element holds


def export_page(
    model: Any,
    path: str | os.PathLike[str],
    *,
    precision: str = 'fp32',
    onnxruntime_web: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Report:
    """Write a segmentor as a web page.

    Args:
        model: As for :func:`ssnet_mm.deploy.export.export`.
        path: Ends in ``.html``.
        precision: 'fp32', or 'fp16', with which the page is smaller and not faster.
        onnxruntime_web: The package's file, which ``npm pack`` downloads; by default npm is asked
            for it, once.
        options: ``size``, ``verify_on`` and ``tolerance`` of ``export``.

    Returns:
        How the network in the page differs from the model.

    Raises:
        UserError: The model can't be exported, or the package is not to be had.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise UserError(f'a page must end in {SUFFIX}, got {path}')
    if precision not in PRECISIONS:
        raise UserError(f'html has no {precision} here, but {" and ".join(PRECISIONS)}')
    parts = _runtime(Path(onnxruntime_web) if onnxruntime_web else _fetched())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'network.onnx')
        report = export(model, file, 'onnx', precision=precision, end_to_end=True, **options)
        network = file.read_bytes()
        processor = Path(f'{file}.processor.json').read_text()
    if len(network) > _LARGEST:
        raise UserError(
            f'a network of {len(network) >> 20} MB is too large for a page ({_LARGEST >> 20} MB); '
            'take precision fp16, or a smaller network'
        )
    write_result(path, _page(path.stem, processor, network, parts))
    return report


def _page(title: str, processor: str, network: bytes, parts: dict[str, bytes]) -> bytes:
    """The template with all that it holds filled in."""
    page = _TEMPLATE.read_bytes()
    content = {
        'title': html.escape(title).encode(),
        'version': VERSION.encode(),
        'processor': json.dumps(json.loads(processor)).replace('<', '\\u003c').encode(),
        **{name: _packed(part) for name, part in {**parts, 'network': network}.items()},
    }
    for name, value in content.items():
        page = page.replace(b'{{%s}}' % name.encode(), value)
    return page


def _packed(data: bytes) -> bytes:
    return base64.b64encode(gzip.compress(data, 9, mtime=0))


def _runtime(package: Path) -> dict[str, bytes]:
    """What a page holds of the npm package, which must be the one that is known here."""
    try:
        data = package.read_bytes()
    except OSError as error:
        raise UserError(f'{package} can not be read ({error.strerror or error})') from error
    if hashlib.sha512(data).hexdigest() != _SHA512:
        raise UserError(
            f'{package} is not the package onnxruntime-web {VERSION} (its SHA-512 is another); get '
            f'it by: npm pack onnxruntime-web@{VERSION}'
        )
    with tarfile.open(package) as archive:
        found = {name: archive.extractfile(member) for name, member in _PARTS.items()}
        return {name: file.read() for name, file in found.items() if file is not None}


def _fetched() -> Path:
    """The package's file, downloaded by npm where it is not yet there."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'ssnet_mm')
    package = cache / f'onnxruntime-web-{VERSION}.tgz'
    if package.is_file():
        return package
    by_hand = (
        f'; download it where you can (npm pack onnxruntime-web@{VERSION}) and name the file '
        '(--onnxruntime-web FILE)'
    )
    with tempfile.TemporaryDirectory() as folder:
        command = ['npm', 'pack', '--silent', f'onnxruntime-web@{VERSION}']
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        except FileNotFoundError as error:
            raise UserError(
                f'a page needs the package onnxruntime-web, and npm is not here{by_hand}'
            ) from error
        except subprocess.TimeoutExpired as error:
            raise UserError(f'npm did not get onnxruntime-web in ten minutes{by_hand}') from error
        made = Path(folder, package.name)
        if done.returncode or not made.is_file():
            why = first_line(RuntimeError(done.stderr)) or 'no file'
            raise UserError(f'npm can not get onnxruntime-web ({why}){by_hand}')
        _runtime(made)  # nothing else is kept
        write_result(package, made.read_bytes())
    return package

"""Segment images over HTTP.

MODEL=fastfcn8.onnx uvicorn --app-dir demo server:app --limit-concurrency 200
curl --data-binary @street.jpg localhost:8000/mask --output mask.png    # or overlay, areas
"""

import asyncio
import io
import os
from contextlib import asynccontextmanager, suppress
from typing import Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from PIL import Image

from ssnet_mm.deploy import Segmenter
from ssnet_mm.errors import UserError

BYTES, PIXELS = 20 << 20, 16_000_000  # an image may have
BATCH = 8  # images of one size that run at once
segment = Segmenter(os.environ['MODEL'], batch_size=BATCH, max_pixels=PIXELS)
slots = asyncio.Semaphore(2 * BATCH)  # images that are decoded at a time: memory is bounded
waiting: asyncio.Queue = asyncio.Queue()


def labels_of(images):
    """Labels of each image, or what is wrong with it."""
    try:
        return segment(images)
    except UserError as error:
        return [error] if len(images) == 1 else [labels_of([image])[0] for image in images]


async def run_batches():
    """Run what waits, as much at once as fits."""
    while True:
        jobs = [await waiting.get()]
        while len(jobs) < BATCH and not waiting.empty():
            jobs.append(waiting.get_nowait())
        results = await asyncio.to_thread(labels_of, [pixels for pixels, _ in jobs])
        for (_, done), result in zip(jobs, results, strict=True):
            if not done.cancelled():
                done.set_result(result)


@asynccontextmanager
async def lifespan(app):
    """Run the network as long as the server."""
    task = asyncio.create_task(run_batches())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


app = FastAPI(lifespan=lifespan)


@app.post('/{kind}')
async def label(kind: Literal['mask', 'overlay', 'areas'], request: Request):
    """PNG of class indices, PNG of an overlay, or each class's share of the image as JSON."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > BYTES:
            raise HTTPException(413, f'an image may have {BYTES} bytes')
    async with slots:
        try:
            pixels = await asyncio.to_thread(segment.pixels, bytes(data))
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        done = asyncio.get_running_loop().create_future()
        waiting.put_nowait((pixels, done))
        labels = await done
        if isinstance(labels, UserError):
            raise HTTPException(400, str(labels))
        return await asyncio.to_thread(answer, kind, pixels, labels)


def answer(kind, pixels, labels):
    """What is sent back."""
    if kind == 'areas':
        shares = np.bincount(labels.ravel(), minlength=segment.session.num_classes) / labels.size
        names = segment.classes or map(str, range(len(shares)))
        return dict(zip(names, shares.round(6).tolist()))
    picture = segment.overlay(pixels, labels) if kind == 'overlay' else Image.fromarray(labels)
    if kind == 'mask':
        picture.putpalette(segment.colours.tobytes()[:768])
    png = io.BytesIO()
    picture.save(png, format='PNG', compress_level=3)
    return Response(png.getvalue(), media_type='image/png')

"""Segment images from files and frames from videos: overlays, and index maps for images."""

from ssnet_mm.deploy.predict.outputs import POLYGONS
from ssnet_mm.deploy.predict.pipeline import predict_images
from ssnet_mm.deploy.predict.sources import (
    VIDEO_SUFFIXES,
    check_output,
    find_images,
    is_video,
    output_names,
)
from ssnet_mm.deploy.predict.video import predict_video

__all__ = [
    'POLYGONS', 'VIDEO_SUFFIXES', 'check_output', 'find_images', 'is_video', 'output_names',
    'predict_images', 'predict_video',
]  # fmt: skip

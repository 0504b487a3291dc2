"""CamVid, the Cambridge-driving labelled video database, in its usual 11 classes.

Source: G. Brostow, J. Fauqueur and R. Cipolla, "Semantic object classes in video: A
high-definition ground truth database", Pattern Recognition Letters 30 (2009). The 11 classes and
their colours are SegNet's: https://arxiv.org/abs/1511.00561.
"""

from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

COLOURS = {  # RGB, in the order of the class indices
    'sky': [128, 128, 128],
    'building': [128, 0, 0],
    'pole': [192, 192, 128],
    'road': [128, 64, 128],
    'pavement': [60, 40, 222],
    'tree': [128, 128, 0],
    'sign symbol': [192, 128, 128],
    'fence': [64, 64, 128],
    'car': [64, 0, 128],
    'pedestrian': [64, 64, 0],
    'bicyclist': [0, 128, 192],
}


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid in Pascal VOC's folder layout.

    .. code-block:: none

        camvid
        ├── ImageSets/Segmentation/{train,val}.txt   a name a line, without suffix
        ├── JPEGImages/<name>.jpg
        └── SegmentationClass/<name>.png             class index 0..10, 255 for void

    Args:
        ann_file: List of names, relative to ``data_root``.
        data_prefix: Folders of the images and the label maps, relative to ``data_root``.
        **kwargs: Other arguments of ``mmseg.datasets.BaseSegDataset``.

    Example:
        >>> from ssnet_mm import CamVidDataset
        >>> CamVidDataset.METAINFO['classes'][3]
        'road'
    """

    METAINFO = dict(classes=tuple(COLOURS), palette=list(COLOURS.values()))
    # for the cards of weights
    LICENCE = (
        'CamVid (Brostow, Fauqueur and Cipolla, Pattern Recognition Letters 30, 2009): for '
        'research use.'
    )

    def __init__(
        self,
        ann_file: str = 'ImageSets/Segmentation/train.txt',
        data_prefix: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if data_prefix is None:
            data_prefix = dict(img_path='JPEGImages', seg_map_path='SegmentationClass')
        super().__init__(ann_file=ann_file, data_prefix=data_prefix, **kwargs)

import numpy as np
import pytest
import torch
from helpers.foreign_nets import draw
from mmengine.structures import PixelData
from mmseg.apis import init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image

from ssnet_mm.engine.tta import MeanProbabilityTTAModel

ONE_CHANNEL = """
model['decode_head'].update(num_classes=2, out_channels=1, threshold=0.5)
model['decode_head']['loss_decode']['use_sigmoid'] = True
two = dict(classes=('no', 'yes'), palette=palette[:2])
for loader in (train_dataloader, val_dataloader):
    loader['dataset']['metainfo'] = two
# the same image twice: the mean is that of one
tta_pipeline[1]['transforms'][0] = [dict(type='RandomFlip', prob=0.0)] * 2
"""


class Network(torch.nn.Module):
    test_step = None  # asked for by mmengine

    def __init__(self, channels):
        super().__init__()
        self.out_channels = channels


def result(probabilities):
    found = SegDataSample(metainfo=dict(img_path='a.jpg'))
    found.seg_logits = PixelData(data=torch.tensor([[probabilities]]))
    found.gt_sem_seg = PixelData(data=torch.zeros(1, 1, len(probabilities)))
    return found


def test_probabilities_of_one_channel_are_averaged():
    module = Network(1)
    module.decode_head = torch.nn.Module()
    module.decode_head.threshold = 0.3
    model = MeanProbabilityTTAModel(module)
    (merged,) = model.merge_preds([[result([0.1, 0.2, 0.9]), result([0.4, 0.6, 0.0])]])
    assert merged.pred_sem_seg.data.tolist() == [[[0.0, 1.0, 1.0]]]  # 0.25, 0.4, 0.45
    assert merged.img_path == 'a.jpg' and 'gt_sem_seg' in merged


def test_augmenting_with_the_image_itself_changes_nothing(tool, tiny_config, tiny_data, tmp_path):
    for path in (tiny_data / 'SegmentationClass').iterdir():
        Image.open(path).point(lambda v: 1 if v == 2 else v).save(path)
    config = tiny_config(ONE_CHANNEL)
    model = init_model(config, None, 'cpu')
    torch.save(draw(model).state_dict(), tmp_path / 'a.pth')
    for folder, more in (('plain', []), ('augmented', ['--tta'])):
        tool('test').main([config, str(tmp_path / 'a.pth'), '--work-dir', str(tmp_path / 'work'),
                           '--out', str(tmp_path / folder), *more])  # fmt: skip
    plain, augmented = (
        [np.array(Image.open(tmp_path / folder / f'{i}.png')) for i in range(4)]
        for folder in ('plain', 'augmented')
    )
    np.testing.assert_array_equal(plain, augmented)
    assert set(np.unique(plain)) == {0, 1}


@pytest.mark.parametrize('kind', ['SegTTAModel', 'MeanProbabilityTTAModel'])
def test_several_channels_are_merged_as_by_mmseg(kind):
    model = MODELS.get(kind)(Network(2))
    one, two = result([0.0]), result([0.0])
    one.seg_logits = PixelData(data=torch.tensor([[[2.0]], [[0.0]]]))
    two.seg_logits = PixelData(data=torch.tensor([[[0.0]], [[1.0]]]))
    (merged,) = model.merge_preds([[one, two]])
    assert merged.pred_sem_seg.data.flatten().tolist() == [0]

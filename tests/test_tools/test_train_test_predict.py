import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from helpers.checkpoints import Hostile
from mmseg.apis import init_model
from PIL import Image

from ssnet_mm.deploy import Segmenter

ROOT = Path(__file__).resolve().parents[2]


def test_train_resume_test_and_predict_agree(tool, tiny_config, tiny_data, tmp_path, fails):
    config, work = tiny_config(), tmp_path / 'work'
    tool('train').main([config, '--work-dir', str(work)])
    plain = torch.load(work / 'iter_2.pth', weights_only=True)
    assert plain['meta']['iter'] == 2
    assert plain['meta']['dataset_meta']['classes'] == ('ground', 'left', 'right')

    tool('train').main(
        [config, '--work-dir', str(work), '--resume', '--cfg-options', 'train_cfg.max_iters=4']
    )
    checkpoint = work / 'iter_4.pth'
    resumed = torch.load(checkpoint, weights_only=True)
    assert len(resumed['message_hub']['log_scalars']['train/loss']['log_history']) == 4
    assert (work / 'last_checkpoint').read_text() == str(checkpoint)

    tested = ['--work-dir', str(tmp_path / 'tested')]
    test = [config, str(checkpoint), *tested]
    tool('test').main([*test, '--out', str(tmp_path / 'out')])
    tool('test').main([*test, '--out', str(tmp_path / 'out_tta'), '--tta'])
    tool('predict').main(
        [config, str(checkpoint), str(tiny_data / 'JPEGImages'), '--out-dir', str(tmp_path / 'p')]
    )
    plainly, augmented, predicted = (
        [np.array(Image.open(tmp_path / folder / f'{i}.png')) for i in range(4)]
        for folder in ('out', 'out_tta', 'p/index')
    )
    np.testing.assert_array_equal(plainly, predicted)
    assert plainly[0].shape == (37, 45)
    assert not np.array_equal(plainly, augmented)
    overlay = Image.open(tmp_path / 'p' / 'overlay' / '0.png')
    assert overlay.mode == 'RGB' and overlay.size == (45, 37)

    # one more class in the config: refused everywhere, and nothing is written
    more = ['--cfg-options', 'model.decode_head.num_classes=4']
    before = set(tmp_path.rglob('*'))
    for name, args in (
        ('test', [config, checkpoint, '--work-dir', tmp_path / 'new']),
        ('test', [config, checkpoint, '--work-dir', tmp_path / 'new', '--tta']),
        ('train', [config, '--work-dir', work, '--resume']),
        ('predict', [config, checkpoint, tiny_data / 'JPEGImages', '--out-dir', tmp_path / 'new']),
    ):
        line = fails(name, *args, *more)
        assert 'iter_4.pth does not fit the model: ' in line
        assert line.endswith('it was trained for 3 classes, the config says 4')
    load_from = [f'load_from={checkpoint}', 'model.decode_head.conv_cfg.type=SeparableConv2d']
    line = fails('train', config, '--work-dir', tmp_path / 'new', '--cfg-options', *load_from)
    assert 'missing: decode_head.scores.0.depthwise.weight' in line
    assert set(tmp_path.rglob('*')) == before


def test_bad_input_is_one_line_and_writes_nothing(tiny_config, tiny_data, tmp_path, fails):
    config, images, out = tiny_config(), tiny_data / 'JPEGImages', tmp_path / 'out'
    torch.save({'state_dict': {'w': torch.ones(1)}}, tmp_path / 'other.pth')
    (tmp_path / 'empty').mkdir()
    before = set(tmp_path.rglob('*'))
    none, other = tmp_path / 'none.pth', tmp_path / 'other.pth'
    root = 'train_dataloader.dataset.data_root=data/miniature_x'
    amp_fails = [] if torch.cuda.is_available() else [
        ('train', [config, '--work-dir', out, '--amp-dtype', 'float16'], 'needs CUDA'),
        ('predict', [config, other, images, '--out-dir', out, '--device', 'cuda'], '0 CUDA'),
    ]  # fmt: skip
    for name, args, message in [
        *amp_fails,
        ('train', ['none.py', '--work-dir', out], 'config none.py not found'),
        (
            'train',
            [config, '--work-dir', out, '--cfg-options', root],
            'make it with ssnet_mm miniature',
        ),
        ('train', [config, '--work-dir', config], 'FileExistsError'),
        ('test', [config, none, '--work-dir', out], 'none.pth not found'),
        ('test', [config, other, '--work-dir', out], '1 unexpected: w'),
        ('predict', [config, none, images, '--out-dir', out], 'none.pth not found'),
        ('predict', [config, other, images, '--out-dir', out], '1 unexpected: w'),
        ('predict', [config, other, tmp_path / 'x', '--out-dir', out], 'no image or folder'),
        ('predict', [config, other, tmp_path / 'empty', '--out-dir', out], 'no image in'),
        ('predict', [config, other, images, '--out-dir', config], 'is a file'),
        ('predict', [config, other, images, '--out-dir', out, '--opacity', 2], 'from 0 to 1'),
    ]:
        assert message in fails(name, *args)
        assert set(tmp_path.rglob('*')) == before


def test_predict_does_what_it_can(tool, tiny_config, tiny_data, tmp_path, fails):
    config = tiny_config()
    model = init_model(config, None, 'cpu')
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    (tiny_data / 'JPEGImages' / '1.jpg').write_bytes(b'no image')
    line = fails('predict', config, tmp_path / 'bare.pth', tiny_data / 'JPEGImages',
                 '--out-dir', tmp_path / 'out')  # fmt: skip
    assert '1 of 4 images could not be segmented: ' in line and '1.jpg' in line
    assert sorted(os.listdir(tmp_path / 'out' / 'index')) == ['0.png', '2.png', '3.png']


def test_a_hostile_checkpoint_in_a_process_of_its_own(tiny_config, tmp_path):
    marker = tmp_path / 'marker'
    torch.save({'state_dict': {}, 'x': Hostile(os.system, f'touch {marker}')}, tmp_path / 'a.pth')
    before = set(tmp_path.rglob('*'))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', ROOT / 'tools' / 'test.py', tiny_config(), 'a.pth'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('test.py: error: checkpoint a.pth is refused')
    assert {p for p in set(tmp_path.rglob('*')) - before if p.suffix != '.py'} == set()


def test_painted_predictions_go_where_show_dir_says(tool, tiny_config, tmp_path):
    config = tiny_config()
    model = init_model(config, None, 'cpu')
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    tool('test').main(
        [config, str(tmp_path / 'bare.pth'), '--work-dir', str(tmp_path / 'work')]
        + ['--show-dir', str(tmp_path / 'painted')]
    )
    painted = os.listdir(tmp_path / 'painted' / 'vis_data' / 'vis_image')
    assert len(painted) == 4 and all(name.startswith('test_') for name in painted)


def test_a_place_for_painted_predictions_that_is_a_file_is_named(tiny_config, tmp_path, fails):
    config = tiny_config()
    torch.save(init_model(config, None, 'cpu').state_dict(), tmp_path / 'bare.pth')
    line = fails('test', config, tmp_path / 'bare.pth', '--work-dir', tmp_path / 'work',
                 '--show-dir', tmp_path / 'bare.pth')  # fmt: skip
    assert "can't make the folder" in line and line.endswith('File exists; choose another place')
    assert not (tmp_path / 'work').exists()


def test_index_maps_hold_the_values_of_the_annotations(tool, tiny_config, tiny_data, tmp_path):
    for path in (tiny_data / 'SegmentationClass').iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 255, 0, mask + 1).astype(np.uint8)).save(path)
    reduced = """
for loader in (train_dataloader, val_dataloader):
    loader['dataset']['reduce_zero_label'] = True
"""
    config, work = tiny_config(reduced), tmp_path / 'work'
    tool('train').main([config, '--work-dir', str(work)])
    whole = work / 'iter_2.pth'
    bare = tmp_path / 'bare.pth'  # whose classes are taken from the config
    torch.save(torch.load(whole, weights_only=True)['state_dict'], bare)
    out = str(tmp_path / 'out')
    tool('test').main([config, str(whole), '--work-dir', str(tmp_path / 't'), '--out', out])
    for checkpoint in (whole, bare):
        arguments = [config, str(checkpoint), str(tiny_data / 'JPEGImages')]
        tool('predict').main([*arguments, '--out-dir', str(tmp_path / checkpoint.stem)])
        for i in range(4):
            tested = np.array(Image.open(tmp_path / 'out' / f'{i}.png'))
            index = Image.open(tmp_path / checkpoint.stem / 'index' / f'{i}.png')
            np.testing.assert_array_equal(tested, index)
            assert tested.min() >= 1 and tested.max() <= 3
            palette = np.array([[0, 0, 0], [0, 0, 0], [200, 0, 0], [0, 200, 0]])
            np.testing.assert_array_equal(palette[tested], index.convert('RGB'))


_OBJECTS = """
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler
from mmengine.hooks import LoggerHook
from mmengine.runner import IterBasedTrainLoop
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder
from torch.optim import SGD

model['type'] = EncoderDecoder
for pipeline in (train_pipeline, test_pipeline):
    pipeline[0]['type'], pipeline[1]['type'] = LoadImageFromFile, LoadAnnotations
    pipeline[-1]['type'] = PackSegInputs
for loader in (train_dataloader, test_dataloader):
    loader['dataset']['type'] = BaseSegDataset
test_dataloader['sampler']['type'] = DefaultSampler
test_evaluator['type'] = IoUMetric
optim_wrapper['optimizer']['type'] = SGD
train_cfg['type'] = IterBasedTrainLoop
default_hooks['logger']['type'] = LoggerHook
"""


def test_a_config_in_pure_python_goes_all_the_way(tool, tiny_config, tmp_path):
    config, work, image = tiny_config(_OBJECTS), tmp_path / 'work', tmp_path / 'data/JPEGImages'
    tool('train').main([config, '--work-dir', str(work)])
    checkpoint = str(work / 'iter_2.pth')
    dumped = str(work / Path(config).name)
    for one in (config, dumped):
        tool('test').main([one, checkpoint, '--work-dir', str(tmp_path / 'test')])
    labels = Segmenter(dumped, checkpoint)(image / '0.jpg')
    assert labels.shape == (37, 45)
    tool('predict').main([config, checkpoint, str(image), '--out-dir', str(tmp_path / 'out')])
    np.testing.assert_array_equal(Image.open(tmp_path / 'out/index/0.png'), labels)
    out = str(tmp_path / 'a.onnx')
    tool('export').main([config, checkpoint, '--format', 'onnx', '--out', out])
    assert (Segmenter(out)(image / '0.jpg') == labels).mean() > 0.99

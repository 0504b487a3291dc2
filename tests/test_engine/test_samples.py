import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.runner import Runner
from mmseg.registry import DATASETS
from PIL import Image

from ssnet_mm.engine import launch
from ssnet_mm.engine.config import build_segmentor
from ssnet_mm.engine.data import check_data
from ssnet_mm.engine.samples import CheckedPipeline, SampleError, check_samples, strange_labels
from ssnet_mm.errors import UserError


@pytest.fixture
def checked(tiny_config):
    """The data set of a loader of the tiny config, changed and then checked."""

    def build(changes='', loader='train_dataloader'):
        cfg = launch.load_config(tiny_config(changes))
        model = build_segmentor(cfg)
        dataset = DATASETS.build(cfg[loader].dataset)
        check_samples(dataset, model)
        return dataset

    return build


def put(root, index, change):
    path = root / 'SegmentationClass' / f'{index}.png'
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def relabelled(old, new):
    return lambda mask: np.where(mask == old, new, mask).astype(np.uint8)


def test_a_sound_sample_is_what_it_was(tiny_config, checked):
    cfg = launch.load_config(tiny_config())
    build_segmentor(cfg)
    plain, dataset = DATASETS.build(cfg.val_dataloader.dataset), checked(loader='val_dataloader')
    assert type(dataset.pipeline) is CheckedPipeline
    for a, b in zip(plain, dataset, strict=True):
        assert a['inputs'].equal(b['inputs'])
        assert a['data_samples'].gt_sem_seg.data.equal(b['data_samples'].gt_sem_seg.data)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (relabelled(2, 3), r'2\.png \(of .*2\.jpg\) holds label 3, but there are 3 classes, 0 to'),
        (relabelled(1, 254), 'holds label 254, but'),
        (lambda m: np.kron(m, np.ones((2, 2), np.uint8)), 'is 90x74 pixels, the image 45x37; make'),
        (lambda m: m.T.copy(), "is 37x45 pixels, .* EXIF .* color_type='color_ignore_orientation'"),
        (lambda m: np.stack([m] * 3, -1), 'has 3 values a pixel; a label map has one'),
    ],
)
@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_a_wrong_label_map_is_named(checked, tiny_data, loader, change, message):
    put(tiny_data, 2, change)
    # not cut out by chance
    dataset = checked('del train_pipeline[2]', loader)
    for i in (0, 1, 3):
        assert dataset[i]['data_samples'].gt_sem_seg.shape == (37, 45)
    with pytest.raises(SampleError, match=message):
        dataset[2]


def test_one_channel_and_one_name_are_two_classes(checked, tiny_data):
    changes = (
        "model['decode_head'].update(num_classes=1, out_channels=1, threshold=0.5)\n"
        "val_dataloader['dataset']['metainfo'] = dict(classes=('crack',))"
    )
    put(tiny_data, 0, relabelled(2, 1))
    dataset = checked(changes, 'val_dataloader')
    assert dataset[0]['data_samples'].gt_sem_seg.data.unique().tolist() == [0, 1, 255]
    with pytest.raises(SampleError, match='1.png .* holds label 2, but there are 2 classes'):
        dataset[1]


def test_labels_that_the_pipeline_maps_are_checked_as_they_come_out(checked, tiny_data):
    put(tiny_data, 0, lambda mask: np.where(mask == 255, 255, mask + 1).astype(np.uint8))
    with pytest.raises(SampleError, match='0.png .* holds label 3, but'):
        checked(loader='val_dataloader')[0]
    mapped = 'val_dataloader["dataset"]["reduce_zero_label"] = True'
    labels = checked(mapped, 'val_dataloader')[0]['data_samples'].gt_sem_seg.data
    assert labels.unique().tolist() == [0, 1, 2, 255]
    put(tiny_data, 0, relabelled(3, 9))
    with pytest.raises(SampleError, match='label 8 .counted after reduce_zero_label'):
        checked(mapped, 'val_dataloader')[0]


def test_ignored_labels_are_those_of_the_head(checked, tiny_data):
    put(tiny_data, 0, relabelled(255, 99))
    with pytest.raises(SampleError, match='holds label 99, but'):
        checked(loader='val_dataloader')[0]
    checked('model["decode_head"]["ignore_index"] = 99', 'val_dataloader')[0]


def test_an_only_class_is_told_what_it_lacks(checked):
    one = 'train_dataloader["dataset"]["metainfo"] = dict(classes=("left",), palette=[[0, 0, 0]])'
    with pytest.raises(SampleError, match='1 class; give the background a name as well'):
        checked(one + '\ndel train_pipeline[2]')[0]


@pytest.mark.parametrize(
    ('folder', 'content', 'message'),
    [
        ('JPEGImages', None, r'^\S*2\.jpg: LoadImageFromFile fails with FileNotFoundError'),
        ('JPEGImages', b'', r'^\S*2\.jpg: LoadImageFromFile fails with '),
        ('JPEGImages', b'no image', r'^\S*2\.jpg: LoadImageFromFile fails with Assert.*2\.jpg'),
        ('SegmentationClass', None, r'^\S*2\.png .*LoadAnnotations fails with FileNotFoundError'),
        ('SegmentationClass', b'\x89PNG', r'^\S*2\.png .*: LoadAnnotations fails with Unident'),
    ],
)
def test_a_file_that_can_not_be_read_is_named(checked, tiny_data, folder, content, message):
    path = next((tiny_data / folder).glob('2.*'))
    dataset = checked()  # and only then it goes
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SampleError, match=message):
        dataset[2]


@pytest.mark.parametrize('folder', ['JPEGImages', 'SegmentationClass'])
@pytest.mark.parametrize(
    ('replace', 'message'),
    [
        (lambda path: Image.new('1', (10_000, 9000)).save(path, 'PNG'), 'more than 89 million'),
        (os.mkfifo, 'is no file but a pipe or a device; mend the file, or take it out of the list'),
    ],
)
@pytest.mark.filterwarnings('ignore:Image size')
def test_a_file_that_decoders_must_not_be_given_is_named(
    tiny_config, checked, tiny_data, folder, replace, message
):
    dataset = checked()
    for i in (2, 0):
        path = next((tiny_data / folder).glob(f'{i}.*'))
        path.unlink()
        replace(path)
    with pytest.raises(SampleError, match=rf'^\S*{path.stem}{path.suffix} .*{message}'):
        dataset[0]
    with pytest.raises(UserError, match=rf'{path.name} (not found|.*{message[:16]})'):
        check_data(launch.load_config(tiny_config()), 'train_dataloader')


def test_other_transforms_name_the_sample(checked, tiny_data):
    dataset = checked()
    dataset.pipeline.transforms.insert(2, lambda data: data['no such'])
    with pytest.raises(
        SampleError,
        match='0.png .of .*0.jpg.: function fails with KeyError.*, or the settings of function, or',
    ):
        dataset[0]


def test_data_sets_inside_others_and_augmented_tests_are_checked(tiny_config, tiny_data):
    put(tiny_data, 3, relabelled(2, 7))
    cfg = launch.load_config(tiny_config())
    inner = [cfg.dataset | dict(pipeline=cfg.test_pipeline)] * 2
    cfg.test_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=inner)
    )
    model = build_segmentor(cfg)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    check_samples(dataset, model)
    for index in (3, 7, 15):
        with pytest.raises(SampleError, match='3.png .* holds label 7'):
            dataset[index]
    augmented = DATASETS.build(cfg.dataset | dict(pipeline=cfg.tta_pipeline))
    check_samples(augmented, model)
    assert len(augmented[2]['inputs']) == 2
    with pytest.raises(SampleError, match='3.png .* holds label 7'):
        augmented[3]


def test_a_sample_taken_instead_of_another_stays_possible():
    assert CheckedPipeline([lambda data: None], 3)({'img_path': 'a'}) is None


def test_the_message_alone_comes_back_from_a_worker(checked, tiny_data):
    put(tiny_data, 2, relabelled(2, 3))
    dataset = checked('del train_pipeline[2]')
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, collate_fn=list)
    with pytest.raises(SampleError) as raised:
        list(loader)
    assert str(raised.value).startswith(str(tiny_data / 'SegmentationClass' / '2.png'))
    assert 'Traceback' not in str(raised.value)
    copied = pickle.loads(pickle.dumps(raised.value))
    assert str(copied) == str(raised.value) and isinstance(copied, UserError)


def test_labels_that_are_no_class():
    assert strange_labels(np.array([[0, 2, 255]], np.uint8), 3, 255) == []
    assert strange_labels(np.array([[0, 3, 200, 3]], np.uint8), 3, 255) == [3, 200]
    assert strange_labels(np.array([-2, -1, 1]), 3, -1) == [-2]
    assert strange_labels(torch.tensor([-1.0, 4.0, 0.0]), 3, 255) == [-1.0, 4.0]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('mode', ['train', 'test'])
def test_a_run_names_a_file_that_has_gone(tiny_config, tiny_data, tmp_path, mode, workers):
    changes = f'{mode}_dataloader["num_workers"] = {workers}\ntrain_cfg["max_iters"] = 6'
    cfg = launch.load_config(tiny_config(changes))
    cfg.work_dir, cfg.launcher = str(tmp_path / 'work'), 'none'
    build = Runner.build_dataloader

    def after(self, *args, **kwargs):
        if os.path.exists(tiny_data / 'SegmentationClass' / '1.png'):
            os.remove(tiny_data / 'SegmentationClass' / '1.png')
        return build(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, 'build_dataloader', after)
        with pytest.raises(UserError, match='1.png .*LoadAnnotations fails with FileNotFound'):
            launch.run(cfg, mode)


def test_only_plain_pipelines_are_replaced():
    class Special(Compose):
        pass

    class Data:
        pipeline = Special([])

    data, model = Data(), torch.nn.Module()
    check_samples(data, model)
    assert type(data.pipeline) is Special

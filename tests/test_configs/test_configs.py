"""Every config: it parses, builds, trains a step and predicts, and says what it means to say."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.nets import count_trainable
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm

from ssnet_mm import CamVidDataset

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
NAMES = [path.stem for path in CONFIGS]


def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    init_default_scope(cfg.default_scope)
    return cfg


def shrink(cfg: Config) -> dict:
    """The config's model, narrow enough for a test."""
    model = copy.deepcopy(cfg.model)
    model.backbone.update(base_channels=2, fc_channels=4)
    model.decode_head.in_channels = [8, 16, 4][-len(model.decode_head.in_channels) :]
    model.data_preprocessor.size = None
    model.data_preprocessor.size_divisor = 1
    return model


def lend_teacher(model: dict, checkpoint: Path) -> None:
    """Give a distilled model a teacher as narrow as itself, with random weights."""
    model.teacher = shrink(Config.fromfile(model.teacher))
    torch.save(MODELS.build(model.teacher).state_dict(), checkpoint)
    model.teacher_checkpoint = str(checkpoint)


def write_voc_layout(root: Path, num_classes: int, names=('a', 'b')) -> Path:
    """Two noisy images with maps of every class, in VOC's layout."""
    rng = np.random.default_rng(0)
    for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True)
    for name in names:
        image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / 'JPEGImages' / f'{name}.jpg')
        labels = rng.integers(0, num_classes, (60, 80), dtype=np.uint8)
        labels[:2] = 255
        Image.fromarray(labels).save(root / 'SegmentationClass' / f'{name}.png')
    for split in ('train', 'val', 'aug'):
        (root / f'ImageSets/Segmentation/{split}.txt').write_text('\n'.join(names))
    (root / 'SegmentationClassAug').symlink_to(root / 'SegmentationClass')
    return root


def test_the_recipes_are_all_there():
    assert set(NAMES) >= {
        *(f'{net}_{data}' for net in ('fcn8', 'fastfcn8') for data in ('voc', 'vocaug', 'camvid')),
        'fcn8_voc_paper',
        'fcn16_voc',
        'fcn32_voc',
        *(f'fcn{stride}_voc_caffe' for stride in (8, 16, 32)),
        'fcn8_voc_caffe_atonce',
        'fastfcn8_miniature',
    }


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [('fcn8_voc', 134_385_311), ('fastfcn8_voc', 20_713_530), ('fcn8_voc_paper', 134_376_863)],
)
def test_the_configs_have_the_originals_parameter_counts(name, parameters):
    cfg = load(name)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        assert count_trainable(model) == parameters


@pytest.mark.parametrize(
    ('name', 'parameters'), [('fcn8_voc', 134_278_854), ('fastfcn8_voc', 20_607_073)]
)
def test_two_classes_from_the_config_have_the_originals_parameter_counts(name, parameters):
    cfg = load(name)
    cfg.merge_from_dict({'model.decode_head.num_classes': 2})
    with torch.device('meta'), pytest.warns(UserWarning, match='binary segmentation'):
        model = MODELS.build(cfg.model)
        assert count_trainable(model) == parameters


def test_without_batch_norm_fastfcn8_from_the_config_has_the_originals_parameter_count():
    cfg = load('fastfcn8_voc')
    cfg.model.backbone.norm_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        assert sum(p.numel() for p in model.parameters()) == 20_705_082


@pytest.mark.parametrize('name', [n for n in NAMES if n.startswith('fastfcn8')])
def test_fastfcn8_differs_from_fcn8_in_the_conv_layer_alone(name):
    fast = load(name).model
    assert fast.backbone.conv_cfg == fast.decode_head.conv_cfg == dict(type='SeparableConv2d')
    plain_name = name.replace('fastfcn8', 'fcn8')
    if plain_name in NAMES:
        fast.backbone.conv_cfg = fast.decode_head.conv_cfg = dict(type='Conv2d')
        assert fast == load(plain_name).model


@pytest.mark.parametrize('name', [n for n in NAMES if n.endswith('_distill')])
def test_a_distilled_student_is_the_plain_network_with_a_teacher_like_it(name):
    cfg, plain = load(name), load(name.removesuffix('_distill'))
    added = ('teacher', 'teacher_checkpoint', 'distill_loss')
    teacher, checkpoint, _ = (cfg.model.pop(key) for key in added)
    taught_by = load(re.sub('fastfcn8(_slim)?', 'fcn8', name.removesuffix('_distill')))
    assert Path(teacher).is_absolute()  # so that it is found from any folder
    assert Config.fromfile(teacher).model == taught_by.model
    assert checkpoint == f'work_dirs/{Path(teacher).stem}/iter_{taught_by.train_cfg.max_iters}.pth'
    assert cfg.model.pop('type') == 'DistilledEncoderDecoder'
    assert plain.model.pop('type') == 'EncoderDecoder'
    assert cfg.to_dict() == plain.to_dict()  # the recipe too


@pytest.mark.parametrize('name', NAMES)
def test_a_config_builds_its_model_trains_a_step_and_predicts(name, tmp_path):
    cfg = load(name)
    num_classes = cfg.model.decode_head.num_classes
    write_voc_layout(tmp_path / 'data', num_classes)

    def build_dataset(dataset: dict):
        for part in dataset.get('datasets', [dataset]):
            part['data_root'] = str(tmp_path / 'data')
        return DATASETS.build(dataset)

    train_set = build_dataset(cfg.train_dataloader.dataset)
    val_set = build_dataset(cfg.val_dataloader.dataset)
    assert len(train_set.metainfo['classes']) == len(train_set.metainfo['palette']) == num_classes

    model_cfg = shrink(cfg)
    if 'teacher' in model_cfg:
        lend_teacher(model_cfg, tmp_path / 'teacher.pth')
    model = MODELS.build(model_cfg)
    model.init_weights()
    model.train()
    data = model.data_preprocessor(pseudo_collate([train_set[0], train_set[1]]), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    # On a parameter without gradient, distributed training stalls.
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert torch.isfinite(loss)

    model.eval()
    with torch.no_grad():
        (result,) = model.test_step(pseudo_collate([val_set[0]]))
    assert result.pred_sem_seg.data.shape == result.gt_sem_seg.data.shape == (1, 60, 80)
    assert result.seg_logits.data.shape == (num_classes, 60, 80)


@pytest.mark.parametrize('name', NAMES)
def test_training_crops_have_the_size_the_preprocessor_pads_to(name, tmp_path):
    cfg = load(name)
    write_voc_layout(tmp_path / 'data', cfg.model.decode_head.num_classes)
    dataset = cfg.train_dataloader.dataset
    for part in dataset.get('datasets', [dataset]):
        part['data_root'] = str(tmp_path / 'data')
    train_set = DATASETS.build(dataset)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    data = preprocessor(pseudo_collate([train_set[0], train_set[1]]), training=True)
    size = tuple(cfg.model.data_preprocessor.get('size') or (60, 80))  # or as the images are
    assert data['inputs'].shape == (2, 3, *size)
    assert data['data_samples'][0].gt_sem_seg.data.shape == (1, *size)


@pytest.mark.parametrize('name', NAMES)
def test_test_time_augmentation_builds(name):
    cfg = load(name)
    for transform in cfg.tta_pipeline:
        TRANSFORMS.build(transform)
    assert MODELS.build(dict(cfg.tta_model, module=shrink(cfg))) is not None


@pytest.mark.parametrize('name', NAMES)
def test_test_time_augmentation_is_around_the_size_that_is_tested(name):
    cfg = load(name)
    image = dict(img=np.zeros((360, 480, 3), np.uint8), img_shape=(360, 480), ori_shape=(360, 480))

    def size(steps):
        data = dict(image)
        for step in steps:
            if step['type'] == 'Resize':
                data = TRANSFORMS.build(step)(data)
        return data['img'].shape[:2]

    (augmented,) = [step for step in cfg.tta_pipeline if step['type'] == 'TestTimeAug']
    views = [size([step]) for step in augmented['transforms'][0]]
    tested = size(cfg.test_dataloader.dataset.pipeline)
    assert tested in views
    assert min(views) < tested < max(views)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('*.py')), ids=lambda p: p.stem)
def test_no_config_imports_anything_or_leans_on_another_package(path):
    lines = path.read_text().splitlines()
    # An import makes OpenMMLab's parser take the file for its other, pure-Python dialect.
    assert not [line for line in lines if line.lstrip().startswith(('import ', 'from '))]
    assert not [line for line in lines if '::' in line]


def test_schedules_reach_their_end():
    for name in NAMES:
        cfg = load(name)
        for scheduler in cfg.param_scheduler:
            if scheduler.type == 'PolyLR':
                assert scheduler.end == cfg.train_cfg.max_iters, name
        # AdamW's decay is decoupled from the gradient: not Keras' L2.
        assert ('l2' in cfg) == (cfg.optim_wrapper.optimizer.type != 'AdamW'), name


def test_camvid_loads_indices_and_keeps_void(tmp_path):
    init_default_scope('mmseg')
    root = write_voc_layout(tmp_path / 'data', 11)
    dataset = CamVidDataset(
        data_root=str(root), pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    )
    sample = dataset[1]
    truth = np.asarray(Image.open(root / 'SegmentationClass/b.png'))
    assert len(dataset) == 2
    assert sample['img'].shape == (60, 80, 3)
    np.testing.assert_array_equal(sample['gt_seg_map'], truth)
    assert sample['gt_seg_map'].max() == 255


@pytest.mark.parametrize('name', ['fcn8_voc', 'fastfcn8_voc'])
def test_batch_norm_converts_to_sync_bn(name):
    model = convert_sync_batchnorm(MODELS.build(shrink(load(name))), 'torch')
    kinds = [type(m) for m in model.modules() if isinstance(m, _BatchNorm)]
    assert kinds == [torch.nn.SyncBatchNorm] * 13


@pytest.mark.parametrize('name', ['fcn8_voc', 'fastfcn8_voc', 'fcn8_voc_paper'])
def test_mixed_precision_trains_every_parameter(name):
    model = MODELS.build(shrink(load(name))).train()
    with torch.autocast('cpu', torch.bfloat16):
        features = model.backbone(torch.randn(2, 3, 65, 97))
        logits = model.decode_head(features)
        loss = torch.nn.functional.cross_entropy(logits, torch.randint(21, (2, 9, 13)))
    assert features[-1].dtype == torch.bfloat16 and logits.dtype == torch.float32
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and g.dtype == torch.float32 for g in grads.values())
    assert all(torch.isfinite(g).all() for g in grads.values())


def test_accumulated_gradients_are_those_of_the_whole_batch():
    cfg = load('fastfcn8_voc')
    cfg.model.backbone.norm_cfg = None  # batch statistics differ between a batch and its halves
    cfg.model.backbone.dropout_ratio = 0.0
    model = MODELS.build(shrink(cfg)).train()
    image, labels = torch.randn(4, 3, 33, 47), torch.randint(21, (4, 5, 6))

    def step(counts: int) -> dict[str, torch.Tensor]:
        net = copy.deepcopy(model)
        cfg.optim_wrapper.accumulative_counts = counts
        wrapper = build_optim_wrapper(net, copy.deepcopy(cfg.optim_wrapper))
        for x, y in zip(image.chunk(counts), labels.chunk(counts), strict=True):
            loss = torch.nn.functional.cross_entropy(net(x, mode='tensor'), y)
            with wrapper.optim_context(net):
                wrapper.update_params(loss)
        return net.state_dict()

    whole, halves = step(1), step(2)
    before = model.state_dict()
    for name in whole:
        torch.testing.assert_close(halves[name], whole[name], rtol=1e-4, atol=1e-7)
    assert any(not torch.equal(whole[name], before[name]) for name in whole)

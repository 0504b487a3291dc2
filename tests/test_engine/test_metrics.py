import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.apis import init_model
from PIL import Image

from ssnet_mm.engine.launch import load_config
from ssnet_mm.engine.metrics import ClassIoUMetric, ReportMetric, check_outputs
from ssnet_mm.errors import UserError


def sample(prediction, labels, **more):
    return {
        'pred_sem_seg': {'data': torch.tensor([prediction])},
        'gt_sem_seg': {'data': torch.tensor([labels])},
        'img_path': 'a/1.jpg',
        **more,
    }


def metric(*classes, **settings):
    MMLogger.get_instance('metrics')
    built = ClassIoUMetric(**settings)
    built.dataset_meta = dict(classes=classes)
    return built


def test_each_class_has_its_score():
    scored = metric('sky', 'road', 'car', 'bus')
    scored.process({}, [sample([[0, 0, 1, 1]], [[0, 0, 1, 255]]), sample([[0, 2]], [[2, 2]])])
    scores = scored.evaluate(2)
    # sky: 2 pixels right, 1 of car's taken for it; car: 1 of 2 found; a bus is nowhere
    assert scores['IoU.sky'] == 66.67 and scores['IoU.road'] == 100 and scores['IoU.car'] == 50
    assert math.isnan(scores['IoU.bus'])
    assert scores['mIoU'] == pytest.approx((200 / 3 + 100 + 50) / 3, abs=0.01)
    assert scores['aAcc'] == 80


def test_a_class_that_is_never_predicted_counts_in_precision_and_f_score():
    scored = metric('sky', 'road', 'car', 'bus', iou_metrics=['mFscore', 'mDice'])
    scored.process({}, [sample([[0, 0, 0, 0]], [[0, 0, 1, 2]])])  # and a bus is nowhere
    scores = scored.evaluate(1)
    assert scores['mFscore'] == scores['mDice'] == pytest.approx(200 / 3 / 3, abs=0.01)
    assert scores['mPrecision'] == pytest.approx(50 / 3, abs=0.01)
    assert scores['mRecall'] == pytest.approx(100 / 3, abs=0.01)
    areas = (torch.tensor(area) for area in ([2.0, 0, 0], [4.0, 2, 0], [4.0, 1, 0], [2.0, 1, 0]))
    table = ClassIoUMetric.total_area_to_metrics(*areas, ['mFscore'], beta=2)
    # (1 + 4) * 2 / (4 * 2 + 4); a road taken for the sky and a sky for the road; no car
    assert table['Fscore'][:2].tolist() == pytest.approx([5 / 6, 0]) and np.isnan(
        table['Fscore'][2]
    )
    areas = (torch.zeros(1) for _ in range(4))
    table = ClassIoUMetric.total_area_to_metrics(*areas, ['mFscore'], nan_to_num=-1)
    assert table['Fscore'] == table['Precision'] == table['Recall'] == -1


def test_large_images_are_counted_to_the_pixel():
    scored = metric('sky', 'road')
    prediction = torch.zeros((1, 4500, 4000), dtype=torch.uint8)
    labels = prediction.clone()
    labels[:, 4300:] = 1
    scored.process({}, [dict(sample([], []), pred_sem_seg=dict(data=prediction),
                             gt_sem_seg=dict(data=labels))])  # fmt: skip
    scores = scored.evaluate(1)
    assert scores['IoU.sky'] == scores['aAcc'] == 95.56 and scores['IoU.road'] == 0


def test_one_channel_is_scored_as_two_classes():
    scored = metric('background', 'road')
    scored.process({}, [sample([[0.0, 1.0, 1.0, 1.0]], [[0, 0, 1, 1]])])  # as mmseg gives them
    scores = scored.evaluate(1)
    assert (scores['IoU.background'], scores['IoU.road']) == (50, 66.67)
    assert scores['mIoU'] == pytest.approx(58.33)


def test_a_label_that_is_no_class_raises_no_score():
    scored = metric('sky', 'road')
    scored.process({}, [sample([[0, 1]], [[0, 255]])])
    with pytest.raises(UserError, match='the label map of a/1.jpg holds label 2, but there are 2'):
        scored.process({}, [sample([[0, 1]], [[0, 2]])])
    metric('sky', 'road', ignore_index=2).process({}, [sample([[0, 1]], [[0, 2]])])


def test_results_without_labels_are_only_written(tmp_path):
    written = metric('sky', 'road', format_only=True, output_dir=str(tmp_path))
    written.process({}, [sample([[0, 1], [1, 1]], [[0, 9], [0, 0]])])
    assert written.evaluate(1) == {}
    assert np.array(Image.open(tmp_path / '1.png')).tolist() == [[0, 1], [1, 1]]


def test_the_best_for_one_class_is_kept(tool, tiny_config, tmp_path):
    config = tiny_config("""
val_evaluator['type'] = 'ClassIoUMetric'
default_hooks['checkpoint'].update(save_best='IoU.right', greater_keys=['IoU'])
""")
    tool('train').main([config, '--work-dir', str(tmp_path / 'work')])
    best = torch.load(tmp_path / 'work' / 'best_IoU.right_iter_2.pth', weights_only=True)
    scores = best['message_hub']['log_scalars']['val/IoU.right']['log_history']
    assert best['message_hub']['runtime_info']['best_score'] == scores[-1] > 0


def test_one_result_is_not_written_over_another(tiny_config, tiny_data, tmp_path, fails):
    (tiny_data / 'SegmentationClass' / 'b').mkdir()
    (tiny_data / 'JPEGImages' / 'b').mkdir()
    for folder, name in (('JPEGImages', '1.jpg'), ('SegmentationClass', '1.png')):
        content = (tiny_data / folder / name).read_bytes()
        (tiny_data / folder / 'b' / name).write_bytes(content)
    (tiny_data / 'train.txt').write_text('0\n1\nb/1\n')
    config = tiny_config()
    torch.save(init_model(config, None, 'cpu').state_dict(), tmp_path / 'a.pth')
    arguments = ['test', config, tmp_path / 'a.pth', '--work-dir', tmp_path / 'new']
    line = fails(*arguments, '--out', tmp_path / 'out')
    assert '1.jpg and ' in line and 'b/1.jpg would be written to one file; test them' in line
    assert not (tmp_path / 'out').exists() and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('folder', ['SegmentationClass', 'JPEGImages'])
def test_results_are_not_written_over_the_data(tiny_config, tiny_data, tmp_path, fails, folder):
    config, checkpoint = tiny_config(), tmp_path / 'a.pth'
    torch.save(init_model(config, None, 'cpu').state_dict(), checkpoint)
    before = (tiny_data / 'SegmentationClass' / '0.png').read_bytes()
    out = ['--out', tiny_data / 'JPEGImages' / '..' / folder]
    line = fails('test', config, checkpoint, '--work-dir', tmp_path / 'new', *out)
    assert f'results would be written over {tiny_data / folder}/0.' in line
    assert (tiny_data / 'SegmentationClass' / '0.png').read_bytes() == before


@pytest.mark.parametrize('linked', [False, True])
@pytest.mark.parametrize('stage', ['train', 'val'])
def test_a_validation_does_not_write_over_the_data(
    tiny_config, tiny_data, tmp_path, fails, stage, linked
):
    masks = tiny_data / f'masks_{stage}'
    shutil.copytree(tiny_data / 'SegmentationClass', masks)
    if linked:
        for mask in masks.iterdir():
            mask.unlink()
            mask.symlink_to(tiny_data / 'SegmentationClass' / mask.name)
    config = tiny_config(f"""
val_evaluator = dict(val_evaluator, output_dir={str(masks)!r})
prefix = dict(img_path='JPEGImages', seg_map_path='masks_{stage}')
{stage}_dataloader = dict(
    {stage}_dataloader, dataset=dict({stage}_dataloader['dataset'], data_prefix=prefix))
""")
    before = (masks / '0.png').read_bytes()
    line = fails('train', config, '--work-dir', tmp_path / 'new')
    assert f'results would be written over {masks}/0.png; name another folder' in line
    assert (masks / '0.png').read_bytes() == before and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('below', ['', 'out'])
def test_results_that_go_into_a_file_are_one_line(tiny_config, tiny_data, tmp_path, fails, below):
    file = tiny_data / 'train.txt'
    config, checkpoint = _trained(
        tiny_config, tmp_path,
        f'val_evaluator = dict(val_evaluator, output_dir={str(file / below)!r})\n',
    )  # fmt: skip
    work = ['--work-dir', tmp_path / 'new']
    for arguments in (
        ['train', config, *work],
        ['test', config, checkpoint, *work, '--out', file / below],
    ):
        line = fails(*arguments)
        assert f"can't be written into {file / below}: {file} is no folder that may be" in line
        assert not (tmp_path / 'new').exists()


def test_results_that_nobody_writes_may_share_a_name(tiny_config):
    class Data(list):
        def get_data_info(self, index):
            return {'img_path': self[index]}

    same = Data(['a/1.jpg', 'b/1.png'])
    for evaluator in (None, dict(type='IoUMetric'), [dict(type='IoUMetric', output_dir=None)]):
        check_outputs(evaluator, [same])
    check_outputs(dict(output_dir='out'), [Data(['a/1.jpg', 'b/2.jpg', 'a/1.jpg'])])
    with pytest.raises(UserError, match='the results of a/1.jpg and b/1.png would be written to'):
        check_outputs([dict(), dict(output_dir='out')], [Data(['c/0.jpg']), same])


def test_configs_score_each_class():
    cfg = load_config('configs/fastfcn8_camvid.py')
    assert cfg.val_evaluator.type == cfg.test_evaluator.type == 'ClassIoUMetric'


def _trained(tiny_config, tmp_path, changes=''):
    config, checkpoint = tiny_config(changes), tmp_path / 'a.pth'
    torch.save(init_model(config, None, 'cpu').state_dict(), checkpoint)
    return config, str(checkpoint)


def test_a_report_says_what_the_test_says(tool, tiny_config, tiny_data, tmp_path):
    config, checkpoint = _trained(tiny_config, tmp_path)
    work, out = tmp_path / 'work', tmp_path / 'report'
    tool('test').main([config, checkpoint, '--work-dir', str(work), '--report', str(out)])
    (log,) = work.glob('*/*.json')
    logged, report = json.loads(log.read_text()), json.loads((out / 'report.json').read_text())
    for key in ('aAcc', 'mIoU', 'mAcc', 'mBoundaryIoU'):
        assert report[key] == pytest.approx(logged[key], abs=0.006)
    labels = np.stack(
        [np.array(Image.open(p)) for p in (tiny_data / 'SegmentationClass').iterdir()]
    )
    assert [c['support'] for c in report['classes']] == [(labels == i).sum() for i in range(3)]
    assert np.sum(report['confusion']) == report['pixels'] == (labels < 255).sum()
    assert (report['config'], report['checkpoint']) == (config, checkpoint)
    assert report['data'] == [str(tiny_data)] and report['images'] == 4


def test_a_report_of_data_elsewhere(tool, tiny_config, tiny_data, tmp_path):
    config, checkpoint = _trained(
        tiny_config, tmp_path,
        f'data_root = {str(tiny_data)!r}\n'
        'for loader in (train_dataloader, val_dataloader):\n'
        "    loader['dataset']['data_root'] = data_root\n",
    )  # fmt: skip
    shutil.copytree(tiny_data, tmp_path / 'other')
    (tmp_path / 'other' / 'train.txt').write_text('2\n')
    out = tmp_path / 'report'
    tool('test').main(
        [config, checkpoint, '--work-dir', str(tmp_path / 'work'), '--report', str(out)]
        + ['--cfg-options', f'data_root={tmp_path / "other"}']
    )
    report = json.loads((out / 'report.json').read_text())
    assert (report['data'], report['images']) == ([str(tmp_path / 'other')], 1)


def test_a_report_beside_results_and_augmentation(tool, tiny_config, tmp_path):
    own = f"dict(type='ReportMetric', report_dir={str(tmp_path / 'own')!r}, boundary_ratio=0.1)"
    config, checkpoint = _trained(tiny_config, tmp_path, f'test_evaluator = [val_evaluator, {own}]')
    out = ['--out', str(tmp_path / 'out'), '--report', str(tmp_path / 'report'), '--tta']
    tool('test').main([config, checkpoint, '--work-dir', str(tmp_path / 'work'), *out])
    report = json.loads((tmp_path / 'report' / 'report.json').read_text())
    assert report['boundary_ratio'] == 0.1 and not (tmp_path / 'own').exists()
    assert report['options'] == ['--tta'] and len(report['sha256']) == 64
    confusion = np.array(report['confusion'])
    written = np.stack([np.array(Image.open(p)) for p in (tmp_path / 'out').iterdir()])
    assert confusion.sum() < written.size and len(written) == 4


def test_a_report_that_can_not_be_written_is_told_before_the_test(tiny_config, tmp_path, fails):
    config, checkpoint = _trained(tiny_config, tmp_path)
    (tmp_path / 'file').touch()
    work = ['--work-dir', tmp_path / 'work']
    line = fails('test', config, checkpoint, *work, '--report', tmp_path / 'file')
    assert "can't make the folder" in line and '/file: ' in line


def test_one_channel_is_reported_as_two_classes():
    built = ReportMetric()
    built.dataset_meta = dict(classes=('background', 'road'))
    built.process({}, [sample([[0.0, 1.0, 1.0, 1.0]], [[0, 0, 1, 1]])])
    assert built.evaluate(1)['mBoundaryIoU'] == pytest.approx((50 + 200 / 3) / 2, abs=0.01)


def test_results_of_more_classes_than_8_bits_tell_apart_are_not_written():
    for count, reduced in ((257, False), (256, True)):
        meta = dict(classes=[str(i) for i in range(count)], reduce_zero_label=reduced)
        with pytest.raises(UserError, match='8 bits a pixel, which do not tell more than 256'):
            check_outputs(dict(output_dir='out'), [SimpleNamespace(metainfo=meta)])

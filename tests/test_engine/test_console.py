import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.training import train
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import VISBACKENDS

from ssnet_mm.engine import launch
from ssnet_mm.engine.checkpoint import read_checkpoint
from ssnet_mm.engine.console import BEST, _weights, quieten, tell
from ssnet_mm.errors import UserError
from ssnet_mm.files import named_file

BEST_KEPT = "default_hooks['checkpoint'].update(save_best='mIoU', interval=1)\n"


@pytest.mark.parametrize(
    ('model', 'told'),
    [
        (dict(init_cfg=dict(type='Pretrained', checkpoint='a.pth')), 'a.pth'),
        (dict(backbone=dict(init_cfg=[dict(type='Pretrained', checkpoint='b.pth')])), 'b.pth'),
        (dict(pretrained='c.pth', backbone=dict(init_cfg=None)), 'c.pth'),
        (dict(pretrained=None, backbone=dict(init_cfg=dict(type='Kaiming'))), 'random'),
    ],
)
def test_the_weights_that_a_training_starts_from_are_told(model, told):
    assert _weights(Config(dict(model=model))) == told


def test_a_training_says_ten_lines_then_its_progress(tool, tiny_config, tmp_path, capsys):
    config, work = tiny_config(BEST_KEPT), tmp_path / 'my work'
    tool('train').main([config, '--work-dir', str(work)])
    lines = capsys.readouterr().out.splitlines()
    notes = [line for line in lines if line.startswith('WARNING: ')]  # of the data
    lines = [line for line in lines if line not in notes]
    assert any('all images are trained on' in note for note in notes)
    header = lines[: next(i for i, line in enumerate(lines) if 'Iter(train)' in line)]
    assert len(header) <= 10, lines[:14]
    assert header[0].startswith('ssnet_mm 0.')
    told = {line.split()[0]: line for line in header[1:]}
    assert config in told['config'] and '4 and 4 images of' in told['data']
    assert '3 classes: ground, left, right' in told['data']
    assert re.search('EncoderDecoder, VGG16, FCN8Head; [0-9,]+ trainable', told['model'])
    assert told['weights'].split()[1] == 'random'
    assert '2 iterations of batch 2, SGD at 0.01, validated every 2' in told['training']
    (log,) = work.glob('*/*.log')
    assert str(log) in next(line for line in header if line.startswith('  log '))
    progress = lines[len(header) :]
    assert re.match(r'Iter\(train\) \[1/2\] .*eta: .*loss: ', progress[0])
    assert any(re.match(r'Iter\(val\) \[4/4\] .*mIoU: ', line) for line in progress)
    best = 'best_mIoU_iter_2.pth'
    assert re.match(rf'best checkpoint: .*work/{best}, \d', progress[-2])
    assert progress[-1] == f"next: ssnet_mm test {config} '{work / BEST}'"
    assert len(lines) < 20
    whole = log.read_text()
    assert 'System environment' in whole and 'optim_wrapper = ' in whole
    assert all(line.strip() in whole for line in header)


def test_a_training_without_validation_names_its_last_checkpoint(tiny_config, tmp_path, capsys):
    config = tiny_config("""
val_dataloader = val_evaluator = val_cfg = None
model['backbone']['init_cfg'] = None
""")
    train(config, tmp_path / 'work')
    lines = capsys.readouterr().out.splitlines()
    assert '  training  2 iterations of batch 2, SGD at 0.01' in lines
    assert lines[-2] == f'last checkpoint: {tmp_path / "work" / "iter_2.pth"}'
    assert not (tmp_path / 'work' / BEST).exists()


def test_a_test_says_its_scores(tool, tiny_config, tmp_path, capsys):
    config, work = tiny_config(BEST_KEPT), tmp_path / 'work'
    tool('train').main([config, '--work-dir', str(work)])
    capsys.readouterr()
    tool('test').main([config, str(work / BEST), '--work-dir', str(tmp_path / 'tested'), '--fuse'])
    printed = capsys.readouterr().out
    assert re.search(r'weights +\S+best_mIoU_iter_2.pth\n', printed)
    assert 'fused for inference: ' in printed and re.search(r'\| +left +\|', printed)
    assert 'Iter(test) [4/4]' in printed and 'Config:' not in printed
    assert len(printed.splitlines()) < 25


def test_the_best_checkpoint_is_named_in_a_copy_too(tiny_config, tmp_path):
    config, work = tiny_config(BEST_KEPT), tmp_path / 'work'
    train(config, work)
    assert (work / BEST).read_text() == 'best_mIoU_iter_2.pth\n'
    shutil.copytree(work, tmp_path / 'copy')
    named = named_file(str(tmp_path / 'copy' / BEST))
    assert named == str(tmp_path / 'copy' / 'best_mIoU_iter_2.pth')
    assert 'state_dict' in torch.load(named, weights_only=True)
    last = tmp_path / 'copy' / 'last_checkpoint'  # mmengine's, with the path of the original
    assert named_file(str(last)) == str(tmp_path / 'copy' / 'iter_2.pth')
    (tmp_path / 'copy' / BEST).unlink()
    train(config, tmp_path / 'copy', resume=True, train_cfg__max_iters=4)
    assert (tmp_path / 'copy' / (tmp_path / 'copy' / BEST).read_text().strip()).is_file()


@pytest.mark.parametrize('key', ['load_from', 'model.backbone.init_cfg'])
def test_a_training_starts_from_the_best_checkpoint_of_another(tiny_config, tmp_path, key):
    config, work = tiny_config(BEST_KEPT), tmp_path / 'work'
    train(config, work)
    best = torch.load(work / (work / BEST).read_text().strip(), weights_only=True)['state_dict']
    start = str(work / BEST)
    if key != 'load_from':
        start = dict(type='Pretrained', checkpoint=start, prefix='backbone.')
    frozen = dict(custom_keys={'backbone': dict(lr_mult=0.0)})
    train(
        config, tmp_path / 'next', **{key: start, 'train_cfg.max_iters': 1},
        optim_wrapper__paramwise_cfg=frozen,
    )  # fmt: skip
    after = torch.load(tmp_path / 'next' / 'iter_1.pth', weights_only=True)['state_dict']
    for name, weight in best.items():
        if name.startswith('backbone.') and name.endswith('weight'):
            assert torch.equal(after[name], weight), name


def test_names_that_are_no_text_are_logged_and_loaded(tmp_path):
    logger = logging.Logger('names')
    logger.addHandler(logging.FileHandler(tmp_path / 'log', encoding='utf-8'))
    quieten(logger, 'train')
    logger.info('caf\udce9.jpg')
    assert (tmp_path / 'log').read_text() == 'caf\\udce9.jpg\n'
    path = tmp_path / 'caf\udce9.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(1))), path)
    assert read_checkpoint(path)['state_dict']['a'] == 1
    with pytest.raises(
        UserError, match='the name of work_dir .* is no text .UTF-8.; choose another'
    ):
        launch.check_work_dir(Config(dict(work_dir=str(path))))


def test_other_files_are_what_they_are(tmp_path):
    (tmp_path / 'text').write_text('none.pth')
    (tmp_path / 'bytes').write_bytes(b'\xff\xfe')
    for path in ('none', 'text', 'bytes', ''):
        assert named_file(str(tmp_path / path)) == str(tmp_path / path)


def test_warnings_come_through_and_noise_does_not(capsys):
    logger = MMLogger('console', logger_name='console')
    for _ in range(2):
        quieten(logger, 'train')
    logger.info('Hooks will be executed in the following order')
    logger.warning('"FileClient" will be deprecated in future')
    logger.warning('classes without a pixel')
    logger.info('Iter(val) [4/4]  aAcc: 50.0  mIoU: 20.0  IoU.a b: 10.5  IoU.c: nan  time: 0.1')
    tell(logger, 'told')
    assert capsys.readouterr().out.splitlines() == [
        'WARNING: classes without a pixel',
        'Iter(val) [4/4]  aAcc: 50.0  mIoU: 20.0  time: 0.1',
        'told',
    ]
    assert len([h for h in logger.handlers if type(h) is logging.StreamHandler]) == 1


def test_tensorboard_is_asked_for_or_named(tiny_config, monkeypatch):
    cfg = launch.load_config(tiny_config())
    monkeypatch.setattr(launch, 'import_module', lambda name: None)
    for _ in range(2):
        launch.use_tensorboard(cfg)
    types = [backend['type'] for backend in cfg.visualizer.vis_backends]
    assert types == ['LocalVisBackend', 'TensorboardVisBackend']

    def missing(name):
        raise ImportError('No module named tensorboard')

    monkeypatch.setattr(launch, 'import_module', missing)
    with pytest.raises(UserError, match=r'pip install "ssnet_mm\[tensorboard\]" \(No module'):
        launch.use_tensorboard(cfg)
    assert Path(launch.__file__).is_file()


def test_a_training_stops_early_with_averaged_weights(tool, tiny_config, tmp_path, capsys):
    config = tiny_config("""
train_cfg.update(max_iters=40, val_interval=1)
default_hooks['checkpoint'].update(save_best='mIoU', interval=1, max_keep_ckpts=1)
custom_hooks += [
    dict(type='EarlyStoppingHook', monitor='mIoU', patience=1, min_delta=100.0),
    dict(type='EMAHook', momentum=0.001),
]
""")
    work = tmp_path / 'work'
    tool('train').main([config, '--work-dir', str(work)])
    last = torch.load(named_file(str(work / 'last_checkpoint')), weights_only=True)
    assert last['meta']['iter'] < 5 and 'ema_state_dict' in last
    tool('test').main([config, str(work / BEST), '--work-dir', str(tmp_path / 'tested')])
    printed = capsys.readouterr().out
    scores = re.findall(r'Iter\((?:val|test)\) \[4/4\] .*mIoU: ([0-9.]+)', printed)
    assert scores[-1] in scores[:-1]


@pytest.mark.parametrize('saved', [True, False])
def test_a_training_that_ends_early_says_why_and_what_it_has_saved(
    tiny_config, tmp_path, saved, capsys
):
    config, work = (
        tiny_config(f"""
train_cfg.update(max_iters=40, val_interval=1)
default_hooks['checkpoint'].update(interval=40, save_last={saved})
custom_hooks += [dict(type='EarlyStoppingHook', monitor='mIoU', patience=1, min_delta=100.0)]
"""),
        tmp_path / 'work',
    )
    train(config, work)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith('the monitored metric did not improve in the') for line in lines)
    end = [f'last checkpoint: {work}/iter_2.pth', f'next: ssnet_mm test {config} {work}/iter_2.pth']
    end = end if saved else ['no checkpoint was saved; default_hooks.checkpoint says when']
    assert lines[-len(end) :] == end
    assert (work / 'iter_2.pth').is_file() == saved


@pytest.mark.parametrize('name', ['WandbVisBackend', 'MLflowVisBackend', 'TensorboardVisBackend'])
def test_services_that_the_documents_name_are_there(name):
    assert VISBACKENDS.get(name) is not None

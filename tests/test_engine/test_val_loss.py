import json

import pytest
import torch
import torch.nn.functional as F
from helpers.training import train
from mmengine.hooks import Hook
from mmseg.apis import init_model

from ssnet_mm.engine.val_loss import ValLossHook, has_plain_loss

HOOK = "custom_hooks.append(dict(type='ValLossHook'))\n"


class Expected(Hook):
    """The loss by the definition: the head's, of logits brought to the label map's size."""

    def __init__(self):
        self.losses = []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = runner.model
        data = model.data_preprocessor(dict(data_batch), False)
        with torch.no_grad():
            logits = model(data['inputs'], mode='tensor').float()
        label = outputs[0].gt_sem_seg.data
        logits = F.interpolate(logits, size=label.shape[1:], mode='bilinear')
        self.losses.append(
            F.cross_entropy(logits, label, ignore_index=255, reduction='none').mean()
        )


def test_it_is_the_heads_loss_beside_the_metrics(tiny_config, tmp_path):
    expected = Expected()
    train(tiny_config(HOOK), tmp_path / 'work', (expected,))
    (log,) = tmp_path.glob('work/*/vis_data/scalars.json')
    (val,) = [entry for line in log.open() if 'mIoU' in (entry := json.loads(line))]
    assert len(expected.losses) == 4
    assert val['loss'] == pytest.approx(float(torch.stack(expected.losses).mean()), rel=1e-3)


def test_the_best_by_loss_is_kept(tiny_config, tmp_path):
    best = "default_hooks['checkpoint'].update(save_best='loss', rule='less')\n"
    train(tiny_config(HOOK + best), tmp_path / 'work')
    assert (tmp_path / 'work' / 'best_loss_iter_2.pth').is_file()


def test_one_channel_and_void_images(tiny_config, tmp_path, tiny_data):
    hook = ValLossHook()
    model = init_model(tiny_config("""
model['decode_head'].update(
    num_classes=2, out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
"""), None, 'cpu')  # fmt: skip
    runner = type('Runner', (), {'model': model})
    logits = torch.randn(1, 6, 7)

    def sample(label):
        found = type('Sample', (dict,), {})(gt_sem_seg=1, seg_logits=1)
        found.gt_sem_seg = type('Data', (), {'data': label})
        found.seg_logits = type('Data', (), {'data': logits.sigmoid()})
        return found

    label = torch.randint(2, (1, 6, 7))
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, None, [sample(label)])
    metrics = {}
    hook.after_val_epoch(runner, metrics)
    expected = F.binary_cross_entropy_with_logits(logits, label.float())
    assert metrics['loss'] == pytest.approx(expected.item(), rel=1e-3)
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, None, [sample(torch.full_like(label, 255))])
    hook.after_val_epoch(runner, metrics := {})
    assert metrics == {}
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, None, [sample(torch.full_like(label, 255)), sample(label)])
    hook.after_val_epoch(runner, metrics)
    assert metrics['loss'] == pytest.approx(expected.item(), rel=1e-3)


def test_heads_that_compute_another_loss_have_none(tiny_config):
    head = init_model(tiny_config(), None, 'cpu').decode_head
    assert has_plain_loss(head) and not has_plain_loss(None)

    class Other(type(head)):
        def loss_by_feat(self, points, more, samples):
            pass

    other = Other.__new__(Other)
    assert not has_plain_loss(other)

"""Settings of a kind that can't be used."""

import pytest

from ssnet_mm.engine.config import load_config
from ssnet_mm.errors import UserError


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('model', None, 'no model'),
        ('model', 'FCN', 'a dict'),
        ('model.decode_head', 'FCNHead', 'a dict, or a list of them'),
        ('train_dataloader', [], 'a dict'),
        ('train_dataloader.batch_size', {}, 'positive and whole'),
        ('train_dataloader.dataset.data_prefix', 'images', 'a dict'),
        ('val_dataloader.dataset.pipeline', [5], 'a dict'),
        ('val_dataloader.dataset.data_root', 5, 'text'),
        ('optim_wrapper.optimizer.lr', '1e-3', 'a number'),
        ('param_scheduler', [dict(type='PolyLR', power='x')], 'a number'),
        ('default_hooks', 'none', 'a dict'),
        ('default_hooks.checkpoint.max_keep_ckpts', 'all', 'a whole number'),
        ('randomness', 5, 'a dict'),
        ('train_cfg.max_iters', None, 'positive and whole'),
    ],
)
def test_one_is_refused_by_name(tmp_path, tiny_config, name, value, words):
    path = tmp_path / 'whole.py'
    cfg = load_config(tiny_config())
    above, _, last = name.rpartition('.')
    node = cfg
    for key in filter(None, above.split('.')):
        node = node[key]
    node[last] = value
    cfg.dump(path)
    with pytest.raises(UserError, match=words) as caught:
        load_config(str(path))
    assert name in str(caught.value)

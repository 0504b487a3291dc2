"""Checkpoints read safely and loaded whole.

A checkpoint is a pickle, and a pickle can run code. torch's weights-only loading refuses that, but
it also refuses mmengine's own checkpoints, which hold log histories in classes it does not know:
OpenMMLab's mmengine then fails, OneDL's falls back to unsafe loading. Here those few classes are
declared safe, and nothing else is ever loaded.
"""

from ssnet_mm.engine.checkpoint.loading import (
    check_classes,
    check_finite,
    compare_classes,
    is_finite,
    load_checkpoint,
    load_fitting,
    load_state_dict,
    weights_of,
)
from ssnet_mm.engine.checkpoint.meta import dataset_meta
from ssnet_mm.engine.checkpoint.reading import (
    allow_history,
    read_checkpoint,
    was_read,
    weights_only,
)
from ssnet_mm.engine.checkpoint.training_config import (
    changed,
    chosen_otherwise,
    expected_eps,
    expected_input,
    scored_otherwise,
    trained_otherwise,
    training_config,
)
from ssnet_mm.engine.checkpoint.work_dir import (
    Place,
    check_unmixed,
    find_checkpoint,
    newest_whole,
    numbered_checkpoints,
    pretrained_weights,
    read_to_load,
)

__all__ = [
    'Place', 'allow_history', 'changed', 'check_classes', 'check_finite', 'check_unmixed',
    'chosen_otherwise', 'compare_classes', 'dataset_meta', 'expected_eps', 'expected_input',
    'find_checkpoint', 'is_finite', 'load_checkpoint', 'load_fitting', 'load_state_dict',
    'newest_whole', 'numbered_checkpoints', 'pretrained_weights', 'read_checkpoint',
    'read_to_load', 'scored_otherwise', 'trained_otherwise', 'training_config', 'was_read',
    'weights_of', 'weights_only',
]  # fmt: skip

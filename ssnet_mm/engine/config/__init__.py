"""Config files: read, changed by options, looked into, and turned into models."""

from ssnet_mm.engine.config.load import (
    build_segmentor,
    check_dataset_meta,
    config_errors,
    config_meta,
    describe,
    load_config,
    name_of_ours,
    single_datasets,
)

__all__ = [
    'build_segmentor', 'check_dataset_meta', 'config_errors', 'config_meta',
    'describe', 'load_config', 'name_of_ours', 'single_datasets',
]  # fmt: skip

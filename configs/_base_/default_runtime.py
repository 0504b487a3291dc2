default_scope = 'mmseg'
custom_imports = dict(imports=['ssnet_mm'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # The backend writes beside the target and renames it, and only then removes an outdated file:
    # no checkpoint is ever half-written, and there is one at every moment.
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=2000,
        max_keep_ckpts=2,
        save_best='mIoU',  # or one class: 'IoU.car'
        # With these in its name a metric is the better the greater.
        greater_keys=['IoU', 'Acc', 'Dice', 'Fscore', 'Precision', 'Recall'],
        backend_args=dict(backend='atomic'),
    ),
    # Checkpoints hold plain data only, so that torch's weights-only loading takes them everywhere.
    plain_checkpoint=dict(type='PlainCheckpointHook'),
    # Stops at NaN and infinity; batch norm's statistics and losses are those of all processes.
    guard=dict(type='GuardHook'),
    val_loss=dict(type='ValLossHook'),  # beside mIoU, in every validation
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)

log_processor = dict(by_epoch=False)
log_level = 'INFO'
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
tta_model = dict(type='MeanProbabilityTTAModel')
load_from = None
resume = False

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

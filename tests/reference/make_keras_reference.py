"""Store what the described network computes in Keras, for tests that run without TensorFlow.

FCN8 and FastFCN8 are built here from Keras' own layers, by the description and under the original's
layer names, with random weights, at a small width and an odd size. For each conv type one
``keras_TYPE.npz`` holds the image, the weights by Keras layer name and what comes out:

========================= ========================================================================
``weights/LAYER/NAME``    every weight, in Keras' layout; shared by all that follows
``bn/logits``             stride-8 logits in inference, with batch norm
``plain/logits``          the same without batch norm
``train/logits``          with batch norm in training mode, dropout 0
``fused/LAYER/NAME``      moving mean and variance after that one pass, Keras 2's default layer
``unfused/LAYER/NAME``    the same of ``fused=False``, which is what Keras 3 computes
``penalty``               sum of the penalties of ``regularizers.l2(l2)`` on all conv kernels
``penalty_grad/L/NAME``   its gradient; a weight that is not here has none
``parameters/LAYER``      trainable parameters at full width, 2 classes, with batch norm
========================= ========================================================================

TensorFlow gets an environment of its own, the tests need none of it::

    python -m venv keras-env
    keras-env/bin/pip install tensorflow-cpu tf-keras
    TF_USE_LEGACY_KERAS=1 keras-env/bin/python tests/reference/make_keras_reference.py

Without ``TF_USE_LEGACY_KERAS`` the script runs Keras 3 (and leaves out ``fused``). The tests read
another folder if ``SSNET_KERAS_REFERENCE`` names one; at full width::

    TF_USE_LEGACY_KERAS=1 keras-env/bin/python tests/reference/make_keras_reference.py \
        --out-dir keras-full --base-channels 64 --fc-channels 4096 --num-classes 21 --size 97 131
    SSNET_KERAS_REFERENCE=keras-full pytest tests/test_models/test_keras_equivalence.py
"""

import argparse
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from zlib import crc32

import numpy as np
import tensorflow as tf

LEGACY = os.environ.get('TF_USE_LEGACY_KERAS', '').lower() in ('1', 'true')  # Keras 2
keras = tf.keras
layers = keras.layers

STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # convolutions, width / base_channels


def build(
    conv_type: str,
    size: tuple[int, int],
    num_classes: int,
    base_channels: int,
    fc_channels: int,
    l2: float,
    use_bn: bool = True,
    dropout: float = 0.5,
    **bn_kwargs,
) -> 'keras.Model':
    """Build the network that ends in stride-8 logits."""
    l2_of = partial(keras.regularizers.l2, l2)

    def conv(x, filters, kernel, name, activation=None):
        common = dict(padding='same', activation=activation, name=name)
        if conv_type == 'conv':
            return layers.Conv2D(filters, kernel, kernel_regularizer=l2_of(), **common)(x)
        # A kernel_regularizer would be taken here without complaint by Keras 2, and ignored.
        return layers.SeparableConv2D(
            filters, kernel, depthwise_regularizer=l2_of(), pointwise_regularizer=l2_of(), **common
        )(x)

    def add_upsampled(x, skip, name):
        x = layers.Conv2DTranspose(
            num_classes,
            4,
            strides=2,
            padding='same',
            use_bias=False,
            kernel_regularizer=l2_of(),
            name=name,
        )(x)
        rows, columns = x.shape[1] - skip.shape[1], x.shape[2] - skip.shape[2]
        x = layers.Cropping2D(((0, rows), (0, columns)))(x)  # bottom, right
        return layers.Add()([x, skip])

    image = x = layers.Input((*size, 3))
    pools = []  # strides 1/2 .. 1/32
    for stage, (depth, factor) in enumerate(STAGES, 1):
        for i in range(1, depth + 1):
            name = f'conv{stage}_{i}'
            x = conv(x, base_channels * factor, 3, name)
            if use_bn:
                x = layers.BatchNormalization(
                    epsilon=1e-3, momentum=0.99, name=f'{name}_bn', **bn_kwargs
                )(x)
            x = layers.ReLU()(x)
        x = layers.MaxPooling2D(2, padding='same')(x)
        pools.append(x)
    for name, kernel in (('fc1', 7), ('fc2', 1)):
        x = conv(x, fc_channels, kernel, name, activation='relu')
        x = layers.Dropout(dropout)(x)

    x = conv(x, num_classes, 1, 'score32')
    x = add_upsampled(x, conv(pools[3], num_classes, 1, 'score16'), 'upscore32')  # 1/16
    x = add_upsampled(x, conv(pools[2], num_classes, 1, 'score8'), 'upscore16')  # 1/8
    return keras.Model(image, x)


def weights_of(model: 'keras.Model') -> dict:
    """Name a model's variables ``LAYER/NAME``, the same in Keras 2 and 3."""
    return {
        f'{layer.name}/{variable.name.split("/")[-1].split(":")[0]}': variable
        for layer in model.layers
        for variable in layer.weights
    }


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw a weight by its name: without symmetry, none zero by rule, activations of order 1."""
    kind = name.split('/')[1]
    normal = np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape)
    # On a grid of sixteenths: exact in any float format, and small when compressed.
    normal = np.round(normal * 16).clip(-64, 64) / 16
    if kind == 'gamma':
        return 1 + normal / 4
    if kind == 'moving_variance':
        return 1 + np.abs(normal) / 2
    if kind in ('bias', 'beta', 'moving_mean'):
        return normal / 4
    rows, columns, channels = shape[:3]
    if kind == 'depthwise_kernel':
        variance = 1 / (rows * columns)
    elif name.startswith('upscore'):
        variance = 1 / (4 * shape[3])  # (4, 4, out, in), a quarter of the taps meets each pixel
    else:
        variance = 2 / (rows * columns * channels)
    return normal * 2 ** np.round(np.log2(variance) / 2)


def make(conv_type: str, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Run all cases of one conv type."""
    new_model = partial(
        build,
        conv_type,
        tuple(args.size),
        args.num_classes,
        args.base_channels,
        args.fc_channels,
        args.l2,
    )
    image = np.random.default_rng(args.seed).standard_normal((2, *args.size, 3))
    image = (np.round(image * 16) / 16).astype(np.float32)
    out = dict(
        image=image,
        l2=np.float64(args.l2),
        num_classes=args.num_classes,
        base_channels=args.base_channels,
        fc_channels=args.fc_channels,
        versions=f'tensorflow {tf.__version__}, keras {version("tf-keras" if LEGACY else "keras")}',
    )

    def ready(**kwargs):
        keras.backend.clear_session()
        model = new_model(**kwargs)
        for name, variable in weights_of(model).items():
            variable.assign(draw(name, tuple(variable.shape), args.seed).astype(np.float32))
        return model

    model = ready()
    for name, variable in weights_of(model).items():
        out[f'weights/{name}'] = variable.numpy()
    out['bn/logits'] = model(image, training=False).numpy()
    with tf.GradientTape() as tape:
        penalty = tf.add_n(model.losses)
    out['penalty'] = penalty.numpy()
    names = {id(variable): name for name, variable in weights_of(model).items()}
    variables = model.trainable_variables
    for variable, grad in zip(variables, tape.gradient(penalty, variables), strict=True):
        if grad is not None:
            out[f'penalty_grad/{names[id(variable)]}'] = grad.numpy()

    out['plain/logits'] = ready(use_bn=False)(image, training=False).numpy()

    for fused in (True, False) if LEGACY else (None,):
        model = ready(dropout=0.0, **(dict(fused=fused) if LEGACY else {}))
        out['train/logits'] = model(image, training=True).numpy()
        for name, variable in weights_of(model).items():
            if 'moving' in name:
                out[f'{"fused" if fused else "unfused"}/{name}'] = variable.numpy()

    keras.backend.clear_session()
    full = build(conv_type, (32, 32), 2, base_channels=64, fc_channels=4096, l2=args.l2)
    for layer in full.layers:
        if layer.trainable_weights:
            out[f'parameters/{layer.name}'] = np.int64(
                sum(np.prod(variable.shape) for variable in layer.trainable_weights)
            )
    return out


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out-dir', type=Path, default=Path(__file__).parent)
    parser.add_argument('--size', type=int, nargs=2, default=(45, 67), metavar=('H', 'W'))
    parser.add_argument('--num-classes', type=int, default=5)
    parser.add_argument('--base-channels', type=int, default=4)
    parser.add_argument('--fc-channels', type=int, default=8)
    parser.add_argument('--l2', type=float, default=2.5e-4, help="the configs' SGD value")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for conv_type in ('conv', 'ds'):
        out = make(conv_type, args)
        path = args.out_dir / f'keras_{conv_type}.npz'
        np.savez_compressed(path, **out)
        total = sum(int(v) for k, v in out.items() if k.startswith('parameters/'))
        print(f'{path}: {path.stat().st_size / 1024:.0f} KiB, {out["versions"]}')
        print(f'  trainable parameters at full width, 2 classes: {total:,}')
        for case in ('bn', 'plain', 'train'):
            logits = out[f'{case}/logits']
            print(f'  {case}: logits {logits.shape}, standard deviation {logits.std():.3f}')


if __name__ == '__main__':
    main()

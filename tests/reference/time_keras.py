"""Time an exported FastFCN8 or FCN8 against the same network in Keras' layers, in turns.

Run it in the environment that ``make_keras_reference.py`` describes, with onnxruntime beside::

    TF_USE_LEGACY_KERAS=1 keras-env/bin/python tests/reference/time_keras.py ds fastfcn8.onnx

The file is one of ``tools/export.py --format onnx``, which takes normalised images and gives
logits.
"""

import argparse
import statistics
import time

import numpy as np
import onnxruntime as ort
import tensorflow as tf
from make_keras_reference import build


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('conv_type', choices=['conv', 'ds'])
    parser.add_argument('model', help='.onnx file')
    parser.add_argument('--size', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'))
    parser.add_argument('--num-classes', type=int, default=21)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=20)
    args = parser.parse_args()

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras_model = build(args.conv_type, tuple(args.size), args.num_classes, 64, 4096, l2=0)
    graph = tf.function(lambda image: keras_model(image, training=False), jit_compile=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    # Its threads would wait by running, on the cores of TensorFlow's turn.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = ort.InferenceSession(args.model, options)

    image = np.random.default_rng(0).normal(size=(1, 3, *args.size)).astype(np.float32)
    name = session.get_inputs()[0].name
    keras_image = tf.constant(image.transpose(0, 2, 3, 1))
    runs = {
        'Keras': lambda: graph(keras_image).numpy(),
        'exported': lambda: session.run(None, {name: image})[0],
    }
    shapes = {what: run().shape for what, run in runs.items()}
    print(f'{args.threads} threads, {args.rounds} rounds, {shapes}')
    times: dict[str, list[float]] = {what: [] for what in runs}
    for _ in range(args.rounds):
        for what, run in runs.items():
            run()  # the other one has had the caches
            start = time.perf_counter()
            run()
            times[what].append(1000 * (time.perf_counter() - start))
    medians = {what: statistics.median(values) for what, values in times.items()}
    for what, median in medians.items():
        print(f'{what}: median {median:.0f} ms')
    print(f'Keras / exported: {medians["Keras"] / medians["exported"]:.2f}')


if __name__ == '__main__':
    main()

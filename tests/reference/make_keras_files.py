"""Store what Keras itself writes, for tests of the reader that run without TensorFlow.

The network of ``make_keras_reference.py`` at a tiny width, saved in every format a Keras can write
into one file. Each member of ``keras_files.zip`` is ``KERAS/TYPE/FILE``, and the weights it must
give are beside it::

    keras2/conv/weights.npz         by LAYER/NAME
    keras2/conv/a.h5                model.save_weights; Keras 2 alone
    keras2/conv/a.weights.h5        model.save_weights
    keras2/conv/model.h5            model.save, compiled, with an optimizer's state
    keras2/conv/model.keras         the same

Run it with both, in the environment that ``make_keras_reference.py`` describes; what the other one
stored stays::

    TF_USE_LEGACY_KERAS=1 keras-env/bin/python tests/reference/make_keras_files.py
    keras-env/bin/python tests/reference/make_keras_files.py
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from make_keras_reference import LEGACY, build, draw, keras, weights_of

NAME = 'keras2' if LEGACY else 'keras3'


def make(conv_type: str, folder: Path) -> None:
    """Save one model in all formats."""
    keras.backend.clear_session()
    model = build(conv_type, (33, 35), 3, base_channels=1, fc_channels=2, l2=0)
    for name, variable in weights_of(model).items():
        variable.assign(draw(name, tuple(variable.shape), seed=0).astype(np.float32))
    np.savez(folder / 'weights.npz', **{k: v.numpy() for k, v in weights_of(model).items()})
    if LEGACY:
        model.save_weights(folder / 'a.h5')
    model.save_weights(folder / 'a.weights.h5')
    model.compile(keras.optimizers.SGD(momentum=0.9), 'mse')
    model.optimizer.build(model.trainable_variables)
    model.save(folder / 'model.h5')
    model.save(folder / 'model.keras')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path(__file__).with_name('keras_files.zip'))
    out = parser.parse_args().out
    members = {}
    if out.is_file():
        with zipfile.ZipFile(out) as stored:
            members = {name: stored.read(name) for name in stored.namelist()}
    with tempfile.TemporaryDirectory() as temporary:
        for conv_type in ('conv', 'ds'):
            folder = Path(temporary, NAME, conv_type)
            folder.mkdir(parents=True)
            make(conv_type, folder)
            for path in folder.iterdir():
                members[path.relative_to(temporary).as_posix()] = path.read_bytes()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, data in sorted(members.items()):
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # without a date
            print(f'{name}: {len(data) / 1024:.0f} KiB')
    print(f'{out}: {out.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
    main()

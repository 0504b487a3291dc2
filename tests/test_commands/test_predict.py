import pytest


@pytest.mark.parametrize(
    ('model', 'source', 'option', 'message'),
    [
        ('a.onnx', 'in', ['--cfg-options', 'a=1'], '--cfg-options changes a config, and a.onnx is'),
        ('a.onnx', 'in', ['--no-fuse'], '--no-fuse runs a config, and a.onnx is none'),
        ('a.onnx', 'in', ['--show'], '--show shows frames of a video, and in is none'),
        ('a.onnx', 'in', ['--limit', '3'], '--limit counts frames of a video, and in is none'),
        ('a.onnx', 'in.jpg', ['--recursive'], '--recursive searches a folder, and in.jpg is none'),
        ('a.onnx', '-', ['--recursive'], '--recursive searches a folder, and - is none'),
        ('a.onnx', 'a.mp4', ['--recursive'], '--recursive searches a folder, and a.mp4 is none'),
        ('a.onnx', 'a.mp4', ['--confidence'], '--confidence ranks images, and a.mp4 is none'),
        ('a.onnx', '0', ['--polygons', 'coco'], '--polygons outlines images, and 0 is none'),
        ('a.onnx', '0', ['--max-pixels', '9'], '--max-pixels skips images, and 0 is none'),
        ('a.onnx', 'a.mp4', ['--batch-size', '2'], '--batch-size runs images at once, and a.mp4'),
        ('a.onnx', 'in', ['--tolerance', '2'], '--tolerance changes polygons; give --polygons too'),
        ('a.onnx', 'in', ['--min-area', '2'], '--min-area changes polygons; give --polygons too'),
    ],
)
def test_options_that_would_do_nothing_are_refused(fails, tmp_path, model, source, option, message):
    assert message in fails('predict', model, source, '--out-dir', tmp_path / 'out', *option)

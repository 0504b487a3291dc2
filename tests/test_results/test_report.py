import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from ssnet_mm.errors import UserError
from ssnet_mm.results.charts import confusion_chart
from ssnet_mm.results.report import write_report
from ssnet_mm.results.scores import Scores, count

VOC = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
    'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa',
    'train', 'tvmonitor',
)  # fmt: skip


def random_scores(classes, absent=()):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, len(classes), (80, 90))
    for label in absent:
        truth[truth == label] = 255
    prediction = np.where(rng.random(truth.shape) < 0.7, truth % 255 % len(classes), 0)
    return Scores(classes, count(prediction, truth, len(classes), 255), 1)


def test_the_files_hold_the_scores(tmp_path):
    classes = (*VOC[:-1], 'a "tv", or $x_1$')
    scores = random_scores(classes, absent=[4])
    write_report(tmp_path / 'new' / 'report', scores, dict(config='a.py', checkpoint='b.pth'))
    folder = tmp_path / 'new' / 'report'
    assert sorted(path.name for path in folder.iterdir()) == [
        'classes.csv', 'confusion.csv', 'confusion.png', 'report.json',
    ]  # fmt: skip

    def refuse(constant):
        raise AssertionError(constant)  # NaN, which JSON does not know

    report = json.loads((folder / 'report.json').read_text(), parse_constant=refuse)
    assert (report['config'], report['checkpoint'], report['images']) == ('a.py', 'b.pth', 1)
    assert report['mIoU'] == pytest.approx(scores.means()['mIoU'], abs=1e-4)
    assert report['classes'] == scores.rows()
    assert report['classes'][4]['IoU'] is not None or report['classes'][4]['support'] == 0
    assert report['confusion'] == scores.confusion.tolist()
    rows = list(csv.DictReader((folder / 'classes.csv').open()))
    assert [row['class'] for row in rows] == list(classes)
    assert [float(row['IoU']) for row in rows if row['IoU']] == [
        row['IoU'] for row in scores.rows() if row['IoU'] is not None
    ]
    (head, *table) = csv.reader((folder / 'confusion.csv').open())
    assert head[1:] == list(classes) == [row[0] for row in table]
    assert [[int(cell) for cell in row[1:]] for row in table] == scores.confusion.tolist()


@pytest.mark.parametrize('count_of_classes', [2, 21, 60])
def test_the_picture_grows_with_the_classes(count_of_classes):
    classes = [VOC[i % 21] for i in range(count_of_classes)]
    encoded = confusion_chart(random_scores(classes), 'a title')
    picture = Image.open(io.BytesIO(encoded)).convert('RGB')
    cell = 46.2 if count_of_classes <= 40 else 17.6  # pixels
    assert min(picture.size) > cell * count_of_classes
    assert max(picture.size) < cell * count_of_classes + 550
    assert len(picture.getcolors(1 << 24)) > 20


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match="can't write .*file/confusion.png: .*; choose another"):
        write_report(tmp_path / 'file', random_scores(('a', 'b')))

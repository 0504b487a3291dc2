import base64
import gzip
import json
import re
import tarfile

import numpy as np
import pytest
import torch
from helpers.export_formats import need

from ssnet_mm import build_model
from ssnet_mm.deploy import page
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """A package of the same shape and another content, taken for the real one."""
    package = tmp_path / 'package.tgz'
    with tarfile.open(package, 'w:gz') as archive:
        for name in page._PARTS.values():
            file = tmp_path / 'part'
            file.write_text(f'content of {name}')
            archive.add(file, name)
    digest = page.hashlib.sha512(package.read_bytes()).hexdigest()
    monkeypatch.setattr(page, '_SHA512', digest)
    return package


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = build_model(3, 'ds', base_channels=2, fc_channels=4).eval()
    made.dataset_meta = {'classes': ('</script>', 'b', 'c'), 'palette': [[1, 2, 3]] * 3}
    return made


def stored(text, name):
    found = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', text)[1]
    return gzip.decompress(base64.b64decode(found))


def test_a_page_holds_the_network_and_all_around_it(model, parts, tmp_path):
    need('onnx')
    report = page.export_page(model, tmp_path / 'a.html', size=(40, 48), onnxruntime_web=parts)
    assert report.passes('fp32')
    text = (tmp_path / 'a.html').read_text()
    assert '{{' not in text and '<title>a</title>' in text
    for name, member in page._PARTS.items():
        assert stored(text, name).decode() == f'content of {member}'
    told = json.loads(re.search(r'id="processor">(.*?)</script>', text)[1])
    assert told['classes'] == ['</script>', 'b', 'c'] and told['end_to_end'] is True
    (tmp_path / 'a.onnx').write_bytes(stored(text, 'network'))
    labels = Segmenter(tmp_path / 'a.onnx')(np.zeros((30, 50, 3), np.uint8))
    assert labels.shape == (30, 50)


def test_what_no_page_can_hold_is_refused(model, parts, tmp_path, monkeypatch):
    need('onnx')
    other = tmp_path / 'other.tgz'
    other.write_text('other')
    for path, options, message in (
        ('a.onnx', {}, 'a page must end in .html'),
        ('a.html', dict(precision='int8'), 'html has no int8 here, but fp32 and fp16'),
        ('a.html', dict(onnxruntime_web=other), 'not the package onnxruntime-web .*SHA-512'),
        ('a.html', dict(onnxruntime_web='none.tgz'), 'none.tgz can not be read .No such file'),
    ):
        with pytest.raises(UserError, match=message):
            page.export_page(model, tmp_path / path, **{'onnxruntime_web': parts, **options})
    monkeypatch.setattr(page, '_LARGEST', 1000)
    with pytest.raises(UserError, match='too large for a page'):
        page.export_page(model, tmp_path / 'a.html', size=(40, 48), onnxruntime_web=parts)
    assert not (tmp_path / 'a.html').exists()


def test_npm_is_asked_once(parts, tmp_path, monkeypatch):
    tools = tmp_path / 'bin'
    tools.mkdir()
    monkeypatch.setenv('PATH', str(tools))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    with pytest.raises(UserError, match=r'npm is not here; download it .*--onnxruntime-web FILE'):
        page._fetched()
    npm = tools / 'npm'
    npm.write_text('#!/bin/sh\necho "npm error 404" >&2\nexit 1\n')
    npm.chmod(0o755)
    with pytest.raises(UserError, match=r'can not get onnxruntime-web \(npm error 404\); downl'):
        page._fetched()
    file = f'onnxruntime-web-{page.VERSION}.tgz'
    npm.write_text(f'#!/bin/sh\necho other > {file}\n')
    with pytest.raises(UserError, match='SHA-512'):
        page._fetched()
    npm.write_text(f'#!/bin/sh\n/bin/cp {parts} {file}\n')
    found = page._fetched()
    npm.unlink()
    assert page._fetched() == found == tmp_path / 'cache' / 'ssnet_mm' / file


def test_options_of_other_formats_are_refused(fails, tiny_config, tmp_path):
    config = tiny_config()
    for format, option in (('html', '--scores'), ('onnx', '--onnxruntime-web=x.tgz')):
        line = fails('export', config, 'none.pth', '--format', format, option)
        assert f'{option.partition("=")[0]} has no use with --format {format}; leave' in line

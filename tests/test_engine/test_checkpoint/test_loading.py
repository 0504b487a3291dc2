import pytest
import torch
from mmengine.model import BaseModel
from mmseg.models import SegTTAModel
from torch import nn

from ssnet_mm.engine import load_checkpoint, load_state_dict
from ssnet_mm.errors import UserError


class Segmentor(BaseModel):
    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.decode_head = nn.Conv2d(4, classes, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.decode_head(self.backbone(inputs))


@pytest.mark.parametrize('nested', [True, False])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('wrap', [False, True])
def test_weights_arrive_from_any_nesting(tmp_path, nested, prefix, wrap):
    given, model = Segmentor(), Segmentor()
    weights = {prefix + key: value for key, value in given.state_dict().items()}
    torch.save(
        {'state_dict': weights, 'meta': {'iter': 7}} if nested else weights, tmp_path / 'a.pth'
    )
    checkpoint = load_checkpoint(SegTTAModel(model) if wrap else model, tmp_path / 'a.pth')
    assert not nested or checkpoint['meta'] == {'iter': 7}
    for key, value in given.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)


def test_loaded_weights_outlive_the_file(tmp_path):
    # they are mapped from it while loading
    model = nn.Linear(2, 2)
    torch.save({'weight': torch.full((2, 2), 5.0), 'bias': torch.zeros(2)}, tmp_path / 'a.pth')
    load_checkpoint(model, tmp_path / 'a.pth')
    (tmp_path / 'a.pth').write_bytes(b'')
    assert model.weight.tolist() == [[5.0, 5.0], [5.0, 5.0]]


def test_another_class_count_is_said_plainly():
    with pytest.raises(
        UserError,
        match=r'a.pth does not fit the model: 2 misshapen: decode_head.weight '
        r'\(\(21, 4, 1, 1\) instead of \(3, 4, 1, 1\)\), .*'
        'it was trained for 21 classes, the config says 3',
    ):
        model = Segmentor(3)
        model.decode_head.out_channels = 3
        load_state_dict(model, Segmentor(21).state_dict(), 'a.pth')


def test_missing_and_unexpected_keys_are_counted_and_some_are_listed():
    weights = {f'extra.{i}': torch.ones(1) for i in range(5)}
    weights['decode_head.bias'] = torch.ones(3)
    with pytest.raises(
        UserError,
        match=r'7 missing: backbone.0.weight, .*, \.\.\.; '
        r'5 unexpected: extra.0, extra.1, extra.2, \.\.\.$',
    ):
        load_state_dict(Segmentor(), weights, 'a.pth')


def test_batch_counters_may_be_missing():
    weights = {k: v for k, v in Segmentor().state_dict().items() if not k.endswith('tracked')}
    assert len(weights) == 8
    load_state_dict(Segmentor(), weights, 'a.pth')


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    torch.save({'meta': {}}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='a.pth holds no weights'):
        load_checkpoint(nn.Linear(1, 1), tmp_path / 'a.pth')
    torch.save(
        {'net': nn.Linear(1, 1).state_dict(), 'optimizer': {'state': {}}}, tmp_path / 'a.pth'
    )
    with pytest.raises(UserError, match="no weights where .* but under 'net'; save that alone"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / 'a.pth')


@pytest.mark.parametrize('dtype', [torch.int32, torch.bool, torch.complex64])
def test_numbers_that_torch_would_round_are_refused(dtype):
    weights = Segmentor().state_dict()
    weights['decode_head.weight'] = weights['decode_head.weight'].to(dtype)
    with pytest.raises(UserError, match=f'1 not floating point: decode_head.weight of {dtype}$'):
        load_state_dict(Segmentor(), weights, 'a.pth')


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.float8_e4m3fn])
def test_weights_of_another_precision_are_taken(dtype):
    weights = {k: v.to(dtype) if v.dim() > 1 else v for k, v in Segmentor().state_dict().items()}
    model = Segmentor()
    load_state_dict(model, weights, 'a.pth')
    assert torch.equal(model.decode_head.weight, weights['decode_head.weight'].float())

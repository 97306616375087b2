"""Window attention for traces: torchvision's numbers, at every size, from one trace."""

import pytest
import torch
from torchvision.models.swin_transformer import ShiftedWindowAttention

from sst_d2.export.windows import traceable_windows

SIZES = [(1, 1), (4, 4), (4, 9), (8, 8), (5, 13), (12, 3), (16, 20)]


def attention(shift):
    torch.manual_seed(0)
    module = ShiftedWindowAttention(8, window_size=[4, 4], shift_size=[shift, shift], num_heads=2).eval()
    torch.nn.init.normal_(module.relative_position_bias_table)
    return module.requires_grad_(False)


@pytest.mark.parametrize("shift", [0, 2])
def test_it_equals_torchvisions(shift):
    module = attention(shift)
    for size in SIZES:
        features = torch.randn(2, *size, 8)
        expected = module(features)
        with traceable_windows(module):
            found = module(features)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.* is deprecated")
def test_one_trace_holds_for_every_size_where_a_plain_one_does_not():
    module = attention(2)
    plain = torch.jit.trace(module, torch.randn(1, 9, 6, 8), check_trace=False)
    with traceable_windows(module):
        trace = torch.jit.trace(module, torch.randn(1, 9, 6, 8), check_trace=False)
    wrong = 0
    for size in SIZES:
        features = torch.randn(1, *size, 8)
        expected = module(features)
        torch.testing.assert_close(trace(features), expected, rtol=0, atol=1e-6)
        try:
            wrong += not torch.allclose(plain(features), expected, atol=1e-3)
        except RuntimeError:
            wrong += 1
    assert wrong


def test_the_modules_are_as_they_were_afterwards_also_after_an_error():
    module = attention(2)
    with pytest.raises(RuntimeError, match="stop"), traceable_windows(module):
        assert "forward" in vars(module)
        raise RuntimeError("stop")
    assert "forward" not in vars(module)

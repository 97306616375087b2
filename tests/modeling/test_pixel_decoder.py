"""`SSTPixelDecoder`: sizes, independence of images, and the directions that attention begins with."""

import pytest
import torch

from sst_d2.modeling import SSTPixelDecoder
from sst_d2.modeling.pixel_decoder import DeformableAttention, _pixel_centres

CHANNELS = {8: 6, 16: 10, 32: 12}


def random_maps(batch=2, size=(64, 96), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {s: torch.randn(batch, c, size[0] // s, size[1] // s, generator=generator) for s, c in CHANNELS.items()}


def test_every_level_keeps_its_size_and_gets_d_channels():
    refined = SSTPixelDecoder(CHANNELS, dim=16, layers=2, heads=2, points=2, ffn_dim=8)(random_maps())
    assert {s: tuple(m.shape) for s, m in refined.items()} == {8: (2, 16, 8, 12), 16: (2, 16, 4, 6), 32: (2, 16, 2, 3)}


def test_images_of_a_batch_do_not_see_each_other():
    decoder = SSTPixelDecoder(CHANNELS, dim=16, layers=2, heads=2, points=2, ffn_dim=8).eval()
    maps = random_maps()
    both, first = decoder(maps), decoder({s: m[:1] for s, m in maps.items()})
    assert all(torch.allclose(both[s][:1], first[s], atol=1e-5) for s in both)


def test_levels_see_each_other():
    decoder = SSTPixelDecoder(CHANNELS, dim=16, layers=1, heads=2, points=2, ffn_dim=8).eval()
    maps = random_maps()
    changed = {**maps, 32: maps[32] + torch.randn_like(maps[32])}
    assert not torch.allclose(decoder(maps)[8], decoder(changed)[8])


def test_attention_begins_by_looking_into_as_many_directions_as_heads():
    attention = DeformableAttention(16, levels=3, heads=4, points=2)
    offsets = attention.sampling_offsets.bias.view(4, 3, 2, 2)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for level in range(3):
        for point in range(2):
            assert torch.allclose(offsets[:, level, point], expected * (point + 1), atol=1e-6)
    with pytest.raises(ValueError, match="dim 16 is no multiple of heads 3"):
        DeformableAttention(16, levels=1, heads=3, points=1)


def test_reference_points_are_pixel_centres_x_before_y():
    assert torch.allclose(_pixel_centres(1, 2, "cpu"), torch.tensor([[0.25, 0.5], [0.75, 0.5]]))

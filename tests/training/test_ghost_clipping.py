"""Why ghost clipping is refused: its norms are no bounds, its sum not one of independent parts."""

import pytest
import torch
from opacus.grad_sample.linear import compute_linear_norm_sample

from securefed.config import parse_config
from securefed.errors import ConfigError
from securefed.privacy.clipping import L2Clip


def cancelling(tokens=64, width=32, apart=1e-5):
    """Activations and backward signals of an example whose tokens nearly cancel."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, width, bias=False)
    direction = torch.randn(width) * 100.0
    signs = torch.ones(tokens)
    signs[::2] = -1.0
    activations = signs[:, None] * direction + apart * 100.0 * torch.randn(tokens, width)
    backprops = torch.randn(width).repeat(tokens, 1) * 100.0
    return layer, activations[None], backprops[None]


def test_a_ghost_norm_may_be_far_below_the_gradients_own_and_then_nothing_is_clipped():
    """It is a sum that cancels, of squares far larger than itself; Opacus cuts it off at zero."""
    layer, activations, backprops = cancelling()
    gradient = torch.einsum("nti,ntj->ij", backprops.double(), activations.double())
    norm = float(gradient.norm())
    worst = 1.0
    for scale in torch.linspace(0.5, 1.5, 64):
        found = compute_linear_norm_sample(layer, [activations * scale], backprops)
        worst = min(worst, float(found[layer.weight][0]) / (norm * float(scale)))
    clip = 1.0
    assert norm > 10.0 * clip
    assert worst < 0.5  # clipped by this norm, the example weighs more than 2 C
    kept = L2Clip(clip).clip(gradient.flatten().numpy())
    assert float(torch.from_numpy(kept).norm()) <= clip  # one gradient an example is


def test_in_a_weighted_sum_an_example_depends_on_its_neighbours_to_the_bit():
    """The second pass adds examples in one product: what one adds is rounded beside the others."""
    torch.manual_seed(1)
    activations, backprops = torch.randn(8, 16, 24), torch.randn(8, 16, 12)
    first = backprops[0].T @ activations[0]

    def summed(scale):
        others = backprops.clone()
        others[1:] *= scale
        return others.flatten(0, 1).T @ activations.flatten(0, 1)

    def without(scale):
        others = backprops.clone()
        others[1:] *= scale
        others[0] = 0.0
        return others.flatten(0, 1).T @ activations.flatten(0, 1)

    small, large = (summed(s) - without(s) for s in (1.0, 1e6))
    assert torch.allclose(small, first, rtol=1e-3, atol=1e-3)
    assert not torch.equal(small, large)
    assert float((large - first).norm()) > 0.01 * float(first.norm())


def test_ghost_clipping_is_refused_by_name_with_the_reason():
    with pytest.raises(ConfigError, match="'ghost' is refused: it") as refused:
        parse_config({"training": {"clipping": "ghost"}})
    assert "training.clipping" in str(refused.value)
    assert "per_example" in str(refused.value)
    assert parse_config({}).training.clipping == "per_example"

import pytest
import torch

from calibtune.tuning.mean import mean_product


def products(count, rank, experts=1, width=5, height=7):
    draw = torch.Generator().manual_seed(1)
    shapes = (experts * rank, width), (height, rank * experts)
    return [tuple(torch.randn(shape, generator=draw) for shape in shapes) for _ in range(count)]


def plain(a, b, rank, experts):
    """The product as PEFT makes it of a mixture's fused weights, one of each expert."""
    return torch.einsum("ore,eri->eoi", b.reshape(len(b), rank, experts), a.reshape(experts, rank, -1))


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_nearest_product_of_the_rank_is_the_truncated_svd_of_the_mean(count, experts):
    rank = 2
    pairs = products(count, rank, experts)
    a, b, (whole, kept) = mean_product(pairs, rank)
    assert (a.shape, b.shape) == (pairs[0][0].shape, pairs[0][1].shape)
    wanted = sum(plain(*pair, rank, experts) for pair in pairs) / count
    u, values, v = torch.linalg.svd(wanted, full_matrices=False)
    near = (u[:, :, :rank] * values[:, None, :rank]) @ v[:, :rank]
    assert torch.allclose(plain(a, b, rank, experts), near, atol=1e-5)
    assert whole == pytest.approx(float(wanted.square().sum()), rel=1e-5)
    assert kept == pytest.approx(float(near.square().sum()), rel=1e-5)
    assert kept == pytest.approx(whole) if count == 1 else kept < 0.999 * whole


def test_a_rank_above_the_weights_own_is_filled_with_zeros():
    pairs = products(2, 8)
    a, b, _ = mean_product(pairs, 8)
    assert (a.shape, b.shape) == ((8, 5), (7, 8))
    assert torch.allclose(b @ a, sum(b @ a for a, b in pairs) / 2, atol=1e-5)


def test_weights_keep_their_precision():
    pairs = [tuple(each.bfloat16() for each in pair) for pair in products(2, 2)]
    a, b, _ = mean_product(pairs, 2)
    assert (a.dtype, b.dtype) == (torch.bfloat16, torch.bfloat16)

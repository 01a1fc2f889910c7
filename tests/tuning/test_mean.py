import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibtune.models.adapters import WEIGHTS
from calibtune.tuning.mean import mean_product, write_mean


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


def written(folder, pairs, names):
    """Write an adapter of a layer and an embedding, with a tokenizer."""
    folder.mkdir()
    weights = {
        name: each
        for (a, b), (first, second) in zip(pairs, names, strict=True)
        for name, each in ((first, a), (second, b))
    }
    save_file(weights, folder / WEIGHTS)
    for name in ("adapter_config.json", "tokenizer.json", "chat_template.jinja", "vocab.json", "README.md"):
        (folder / name).write_text(json.dumps({"name": f"{folder.name} {name}"}))
    return folder


def test_an_adapter_is_written_with_configuration_and_tokenizer_of_the_first(tmp_path, caplog):
    names = [("x.lora_A.weight", "x.lora_B.weight"), ("e.lora_embedding_A", "e.lora_embedding_B")]
    each = products(4, 2)
    adapters = [written(tmp_path / str(i), each[2 * i : 2 * i + 2], names) for i in range(2)]
    with caplog.at_level(logging.INFO):
        share = write_mean(adapters, tmp_path / "mean", 2)
    found, norms = load_file(tmp_path / "mean" / WEIGHTS), []
    assert set(found) == {name for pair in names for name in pair}
    for place, (first, second) in enumerate(names):
        a, b, both = mean_product([each[place], each[2 + place]], 2)
        assert torch.equal(found[first], a)
        assert torch.equal(found[second], b)
        norms.append(both)
    assert share == pytest.approx(sum(kept for _, kept in norms) / sum(whole for whole, _ in norms))
    assert 0.5 < share < 0.99
    assert f"the mean of 2 adapters, at rank 2: {100 * share:.2f} % of its squared norm" in caplog.text
    kept = {"adapter_config.json", "tokenizer.json", "chat_template.jinja", "vocab.json", WEIGHTS}
    assert {path.name for path in (tmp_path / "mean").iterdir()} == kept
    for name in kept - {WEIGHTS}:
        assert json.loads((tmp_path / "mean" / name).read_text()) == {"name": f"0 {name}"}


def test_a_mean_of_nothing_keeps_all_of_it(tmp_path):
    zero = [(torch.zeros(2, 5), torch.zeros(7, 2))]
    adapter = written(tmp_path / "0", zero, [("x.lora_A.weight", "x.lora_B.weight")])
    assert write_mean([adapter], tmp_path / "deep" / "mean", 2) == 1
    assert write_mean([adapter], tmp_path / "deep" / "mean", 2) == 1

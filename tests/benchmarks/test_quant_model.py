"""The permutation of channels: the same function, other weights."""

from __future__ import annotations

import pytest
import torch
from quant_model import difference, permute
from transformers import LlamaConfig, LlamaForCausalLM


def tiny(*, tied: bool, bias: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=50,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that are not all the same
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_function_stays_and_the_weights_do_not(tied: bool, bias: bool) -> None:
    model, original = tiny(tied=tied, bias=bias), tiny(tied=tied, bias=bias)
    permute(model)
    ids = torch.arange(40).reshape(2, 20)
    assert 0 < difference(original, model, ids) < 1e-5
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    moved = {"v_proj", "o_proj", "q_proj", "gate_proj", "up_proj", "down_proj"}
    for name, weight in model.model.layers[1].named_parameters():
        if name.split(".")[-2] in moved and name.endswith("weight"):
            assert not torch.equal(weight, original.model.layers[1].get_parameter(name)), name


def test_the_same_seed_gives_the_same_order_and_another_gives_another() -> None:
    tables = []
    for seed in (1, 1, 2):
        model = tiny(tied=True, bias=False)
        permute(model, seed)
        tables.append(model.model.embed_tokens.weight.detach())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_a_block_of_weights_gathers_values_of_many_blocks() -> None:
    """The scale of the original's blocks of 8 tells them apart: no block of 8 keeps one scale."""
    model = tiny(tied=True, bias=False)
    scales = torch.arange(48) // 8
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.copy_(scales.float().expand(48, 48))
    permute(model)
    blocks = model.model.layers[0].self_attn.q_proj.weight[0].reshape(-1, 8)
    assert all(len(set(block.tolist())) > 2 for block in blocks)

"""The public study's ten networks: their sizes as published, and their faults, so that nobody takes them for ours."""

from __future__ import annotations

import pytest
import torch

from raymotion.models.fusion.config import PUBLISHED, SOUND, FusionConfig
from raymotion.models.fusion.network import FusionHead, parameter_count

STUDY = {"context": 1536, "body": 1536, "face": 2560}
# emotic_study.md, section 4: with both heads.
PARAMETERS = {
    "simple": 1_450_013,
    "attention": 2_897_565,
    "transformation": 827_805,
    "bottleneck": 827_805,
    "cross_modal_transformer": 1_976_605,
    "weighted": 1_450_528,
    "gated_residual": 1_713_693,
    "bilinear": 1_598_621,
    "layer_norm": 1_461_277,
    "hierarchical": 1_516_317,
}
DIMS = {"context": 7, "body": 6, "face": 5}
ROWS = 8


def head_of(fusion: str, **config) -> FusionHead:
    torch.manual_seed(0)
    return FusionHead(FusionConfig(fusion=fusion, dropout=0, **{"dims": DIMS, "hidden": 16, **config}), 4)


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, size, generator=generator) for size in DIMS.values()]


THERE = torch.ones(ROWS, 3, dtype=torch.bool)


@pytest.mark.parametrize("fusion", PARAMETERS)
def test_the_parameter_counts_are_those_of_the_study(fusion):
    config = FusionConfig(fusion=f"{fusion}_published", dims=STUDY, vad=True)
    assert parameter_count(config, 26) == PARAMETERS[fusion]


def test_each_published_fusion_has_a_sound_twin():
    twins = {name.removesuffix("_published") for name in PUBLISHED}
    assert set(PARAMETERS) == twins and twins <= set(SOUND)


@pytest.mark.parametrize("fusion", PUBLISHED)
def test_no_published_network_is_the_sound_one(fusion):
    published, sound = head_of(fusion), head_of(fusion.removesuffix("_published"))
    assert set(published.state_dict()) != set(sound.state_dict())


def test_defect_7_published_transformation_and_bottleneck_are_one_network():
    first, second = head_of("transformation_published"), head_of("bottleneck_published")
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(inputs(), THERE), second.eval()(inputs(), THERE))


def test_defect_7_published_attention_shrinks_its_features_to_one_part_in_t():
    head = head_of("attention_published")
    total = sum(DIMS.values())
    gate = head.fuse.gate(torch.cat(inputs(), 1))
    assert gate.shape == (ROWS, total)
    torch.testing.assert_close(gate.sum(1), torch.ones(ROWS))
    study = FusionHead(FusionConfig(fusion="attention_published", dims=STUDY), 26)
    values = torch.randn(4, 5632)
    with torch.no_grad():
        shrink = (values * study.fuse.gate(values)).norm() / values.norm()
    assert 0.5 / 5632 < shrink < 2 / 5632


def test_defect_7_published_transformer_is_a_two_way_mix_of_body_and_face():
    """49 copies of one token: the attention's 98 weights are two numbers, and one copy gives the same logits."""
    head = head_of("cross_modal_transformer_published").eval()
    tokens = head.fuse.tokens(dict(zip(DIMS, inputs())))
    assert all(
        part.shape == (ROWS, 49, 16) and torch.equal(part, part[:, :1].expand_as(part)) for part in tokens.values()
    )
    others = torch.cat([tokens["body"], tokens["face"]], 1)
    _, weights = head.fuse.attend(tokens["context"], others, others, average_attn_weights=False)
    of_stream = weights.unflatten(-1, (2, 49))
    torch.testing.assert_close(of_stream, of_stream[..., :1].expand_as(of_stream))

    two = torch.cat([tokens["body"][:, :1], tokens["face"][:, :1]], 1)
    query = tokens["context"][:, :1]
    read, _ = head.fuse.attend(query, two, two)
    fused = head.fuse.norm(query + read)
    expected = head.head((fused + head.fuse.feed(fused)).squeeze(1))
    torch.testing.assert_close(head(inputs(), THERE), expected, rtol=1e-4, atol=1e-5)


def test_defect_7_published_bilinear_has_no_product_across_streams():
    """A stream's products do not move when another stream does."""
    head = head_of("bilinear_published")
    features = dict(zip(DIMS, inputs()))
    before = head.fuse.products(features).unflatten(1, (3, 4))
    after = head.fuse.products(features | {"face": -features["face"]}).unflatten(1, (3, 4))
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2], after[:, 2])


def test_defect_7_published_weights_are_no_simplex():
    """Weights 2, -1, 0.5: a share of -2/3 for the body, that no mean has."""
    head = head_of("weighted_published").eval()
    for name, value in zip(DIMS, (2.0, -1.0, 0.5)):
        head.fuse.scores[name].data.fill_(value)
    parts = [head.fuse.project[name](values) for name, values in zip(DIMS, inputs())]
    expected = (2 * parts[0] - parts[1] + 0.5 * parts[2]) / 1.5
    # A BatchNorm that has seen nothing divides by sqrt(1 + 1e-5).
    torch.testing.assert_close(head(inputs(), THERE), head.head(expected / (1 + 1e-5) ** 0.5))


@pytest.mark.parametrize("fusion", PUBLISHED)
def test_defects_8_and_11_published_networks_zero_what_is_missing_in_training_and_evaluation(fusion):
    """As the study's --ablation in training; its test.py had none. Masked or left out: a vector of zeros."""
    ablated, whole = head_of(fusion, ablation="body_context"), head_of(fusion)
    context, body, face = inputs()
    for mode in (False, True):  # the other way round, running statistics would have moved
        expected = whole.train(mode)([context, body, torch.zeros_like(face)], THERE)
        assert torch.equal(ablated.train(mode)([context, body, face], THERE), expected)
        masked = torch.tensor([True, True, False]).expand(ROWS, 3)
        assert torch.equal(whole([context, body, face], masked), expected)


def test_defect_8_a_constant_of_a_missing_stream_reaches_the_published_logits_but_not_ours():
    """The bias of the face's layer: in the public network it moves a person without a face, in ours it does not."""
    masked = torch.tensor([True, True, False]).expand(ROWS, 3)
    for fusion, moves in (("transformation_published", True), ("transformation", False)):
        head = head_of(fusion).eval()
        before = head(inputs(), masked)
        layer = head.fuse.project["face"]
        (layer[0] if moves else layer).bias.data += 3.0
        assert torch.equal(head(inputs(), masked), before) != moves


def test_published_networks_read_raw_features():
    head = head_of("simple_published").eval()
    before = head(inputs(), THERE)
    head.set_statistics({n: torch.ones(d) for n, d in DIMS.items()}, {n: torch.ones(d) for n, d in DIMS.items()})
    assert torch.equal(head(inputs(), THERE), before)

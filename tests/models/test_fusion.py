"""The ten fusion heads: masks, ablations, statistics, and what makes each one the fusion that its name says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raymotion.data.streams import ABLATIONS, STREAMS
from raymotion.errors import InputError
from raymotion.models.fusion.config import FUSIONS, SOUND, Fusion, FusionConfig, streams_of, wants_tokens
from raymotion.models.fusion.gated import Dropout
from raymotion.models.fusion.network import FusionHead, parameter_count

DIMS = {"context": 7, "body": 6, "face": 5}
LABELS = 4


def head_of(fusion: str, *, seed: int = 0, dropout: float = 0.0, **config) -> FusionHead:
    torch.manual_seed(seed)
    config = {"dims": DIMS, "hidden": 16, "vad": True} | config
    return FusionHead(FusionConfig(fusion=fusion, dropout=dropout, **config), LABELS)


def inputs(head: FusionHead, rows: int, *, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    config = head.config
    shapes = [
        (rows, config.tokens[name], config.token_dims[name]) if config.tokens.get(name) else (rows, size)
        for name, size in config.dims.items()
    ]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def all_there(rows: int, streams: int = 3) -> torch.Tensor:
    return torch.ones(rows, streams, dtype=torch.bool)


masks = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6).map(torch.tensor)
TOKENS = {"tokens": {"context": 4, "body": 3}, "token_dims": {"context": 8, "body": 9}}
# Every sound head on pooled features, and those that read tokens on tokens too.
CASES = [(name, {}) for name in SOUND] + [(name, TOKENS) for name in SOUND if wants_tokens(name)]


@pytest.mark.parametrize("fusion, tokens", CASES)
@given(mask=masks, training=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_a_masked_stream_says_nothing(fusion, tokens, mask, training, seed):
    """For any mask: finite logits, and the same whatever stands where nothing should be read; gradients too."""
    head = head_of(fusion, seed=seed, **tokens).train(training)
    features = inputs(head, len(mask), seed=seed)
    logits = head(features, mask)
    assert logits.shape == (len(mask), LABELS + 3) and logits.isfinite().all()

    for rubbish in (torch.nan, 1e6):
        other = [values.clone() for values in features]
        for number, values in enumerate(other):
            values[~mask[:, number]] = rubbish
        head.zero_grad()
        again = head(other, mask)
        assert torch.equal(again, logits)
        again.sum().backward()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("fusion", SOUND)
@pytest.mark.parametrize("ablation", [name for name in ABLATIONS if name != "all"])
def test_an_ablation_is_the_mask_made_by_hand_and_its_streams_are_read(fusion, ablation):
    whole, ablated = head_of(fusion), head_of(fusion, ablation=ablation)
    ablated.load_state_dict(whole.state_dict())
    features = inputs(whole, 6)
    mask = all_there(6)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = False
    by_hand = mask & torch.tensor([name in ABLATIONS[ablation] for name in STREAMS])
    for mode in (True, False):
        expected = whole.train(mode)(features, by_hand)
        torch.testing.assert_close(ablated.train(mode)(features, mask), expected, rtol=1e-4, atol=1e-5)

    ablated(features, mask).square().sum().backward()
    # A distributed run would wait for the gradient of a layer that asks for one and never runs.
    assert [name for name, p in ablated.named_parameters() if p.requires_grad and p.grad is None] == []
    for number, name in enumerate(STREAMS):
        moved = [values + 1.0 if n == number else values for n, values in enumerate(features)]
        same = torch.equal(ablated(moved, all_there(6)), ablated(features, all_there(6)))
        assert same == (name not in ABLATIONS[ablation]), f"{name} under {ablation}"


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_training_batch_of_one_row_half_precision_and_a_stream_that_no_sample_has(fusion):
    head = head_of(fusion, dropout=0.5).train()
    features = inputs(head, 1)
    mask = torch.tensor([[True, True, False]])
    logits = head([features[0].half(), features[1], None], mask)
    logits.sum().backward()
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    head.eval()
    torch.testing.assert_close(head([features[0], features[1], None], mask), head(features, mask))


@pytest.mark.parametrize("fusion", SOUND)
@pytest.mark.parametrize("streams", [("face",), ("context", "face"), ("body", "face")])
def test_fewer_streams_work_or_are_refused_with_a_reason(fusion, streams):
    dims = {name: DIMS[name] for name in streams}
    if fusion in ("bilinear", "cross_modal_transformer") and len(streams) == 1:
        with pytest.raises(InputError, match=r"one stream only \(face\)"):
            head_of(fusion, dims=dims)
        return
    head = head_of(fusion, dims=dims)
    features = inputs(head, 5)
    logits = head(features, all_there(5, len(streams)))
    assert logits.isfinite().all() and logits.std(0).min() > 0
    assert head(features, torch.zeros(5, len(streams), dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("fusion", SOUND)
def test_statistics_standardise_the_inputs_and_travel_with_the_weights(fusion):
    head = head_of(fusion).eval()
    features = [values * 3 + 10 for values in inputs(head, 40)]
    features[0][:, 2] = 7.0  # never varies
    means = {name: values.mean(0) for name, values in zip(STREAMS, features)}
    stds = {name: values.std(0) for name, values in zip(STREAMS, features)}
    safe = [torch.where(stds[name] > 0, stds[name], 1.0) for name in STREAMS]
    by_hand = [(values - means[name]) / std for name, values, std in zip(STREAMS, features, safe)]
    mask = torch.rand(40, 3, generator=torch.Generator().manual_seed(2)) > 0.3
    expected = head(by_hand, mask)

    head.set_statistics(means, stds)
    torch.testing.assert_close(head(features, mask), expected, rtol=1e-3, atol=1e-4)
    other = head_of(fusion, seed=5).eval()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features, mask), head(features, mask))


def test_statistics_that_do_not_fit_are_refused():
    head = head_of("simple")
    good = {name: torch.ones(size) for name, size in DIMS.items()}
    for bad in (torch.ones(3), torch.full((5,), torch.nan)):
        with pytest.raises(InputError, match="means of stream face are not 5 finite numbers"):
            head.set_statistics(good | {"face": bad}, good)
    with pytest.raises(InputError, match="stds of stream body"):
        head.set_statistics(good, {"context": good["context"]})
    assert not head.standardises


@given(mask=masks, scores=st.lists(st.floats(-30, 30), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_defect_7_the_weights_of_weighted_are_a_simplex_over_the_streams_that_are_there(mask, scores):
    head = head_of("weighted")
    head.fuse.scores.data = torch.tensor(scores)
    weights = head.fuse.weights(STREAMS, mask)
    assert (weights >= 0).all() and (weights[~mask] == 0).all()
    torch.testing.assert_close(weights.sum(1), mask.any(1).float())


def test_weighted_is_the_weighted_mean_worked_by_hand():
    head = head_of("weighted")
    head.fuse.scores.data = torch.tensor([0.0, 1.0, 5.0]).log().nan_to_num(neginf=-100.0)
    features = inputs(head, 3)
    mask = torch.tensor([[True, True, True], [False, True, True], [True, True, False]])
    parts = [torch.relu(head.fuse.project[name](values)) for name, values in zip(STREAMS, features)]
    expected = torch.stack([(parts[1][0] + 5 * parts[2][0]) / 6, (parts[1][1] + 5 * parts[2][1]) / 6, parts[1][2]])
    expected = head.head(torch.nn.functional.layer_norm(expected, (16,)))
    torch.testing.assert_close(head(features, mask)[:, :LABELS], expected)


def test_defect_7_attention_shares_out_streams_and_tokens_not_features():
    """Equal scores: equal shares for each stream, whatever its tokens; the fused vector does not shrink with D."""
    head = head_of("attention", **TOKENS)
    torch.nn.init.zeros_(head.fuse.score.weight)
    tokens = head.fuse.tokens(dict(zip(STREAMS, inputs(head, 2))))
    mask = torch.tensor([[True, True, True], [True, False, True]])
    weights = head.fuse.weights(tokens, mask)
    expected = [[1 / 12] * 4 + [1 / 9] * 3 + [1 / 3], [1 / 8] * 4 + [0] * 3 + [1 / 2]]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_defect_7_bilinear_multiplies_streams_with_each_other():
    head = head_of("bilinear")
    parts = dict(zip(STREAMS, (torch.rand(2, 16) for _ in STREAMS)))
    products = head.fuse.products(parts)
    assert list(products) == ["context_x_body", "context_x_face", "body_x_face"]
    left, right = head.fuse.left["body_x_face"].weight, head.fuse.right["body_x_face"].weight
    by_hand = torch.einsum("rh,nh,rk,nk->nr", left, parts["body"], right, parts["face"])
    torch.testing.assert_close(products["body_x_face"], by_hand)
    # Twice the face: twice each product that it is in, and no other.
    more = head.fuse.products(parts | {"face": 2 * parts["face"]})
    assert torch.equal(more["context_x_body"], products["context_x_body"])
    torch.testing.assert_close(more["context_x_face"], 2 * products["context_x_face"])


def test_defect_7_bottleneck_passes_only_a_few_numbers_between_streams():
    """What the context learns of the body has the rank of the bottleneck at most; and it learns something."""
    dims = {"context": 40, "body": 40}
    head = head_of("bottleneck", dims=dims, hidden=64).double()
    head.fuse.latent.data.normal_()
    context, body = (torch.randn(1, 40, dtype=torch.float64) for _ in dims)

    def context_after(values):
        return head.fuse.streams({"context": context, "body": values}, all_there(1, 2))[0, 0]

    rank = torch.linalg.matrix_rank(torch.autograd.functional.jacobian(context_after, body)[:, 0], rtol=1e-9)
    assert 0 < rank <= 4 * 64 // 8


def test_defect_7_our_bottleneck_is_not_our_transformation():
    names = {fusion: set(head_of(fusion).state_dict()) for fusion in ("bottleneck", "transformation")}
    assert names["bottleneck"] != names["transformation"]
    counts = [parameter_count(FusionConfig(fusion=fusion, dims=DIMS), 26) for fusion in names]
    assert counts[0] != counts[1]


@pytest.mark.parametrize("fusion", [name for name in SOUND if wants_tokens(name)])
def test_defect_7_tokens_are_read_one_by_one_and_in_no_order(fusion):
    head = head_of(fusion, **TOKENS).eval()
    features = inputs(head, 3)
    logits = head(features, all_there(3))
    shuffled = [features[0][:, [2, 0, 3, 1]], features[1][:, [2, 0, 1]], features[2]]
    torch.testing.assert_close(head(shuffled, all_there(3)), logits, rtol=1e-4, atol=1e-5)
    # Not their mean alone, as a pooled vector is, nor 49 copies of it.
    flat = [features[0], features[1].mean(1, keepdim=True).expand(-1, 3, -1), features[2]]
    assert (head(flat, all_there(3)) - logits).abs().max() > 1e-3


def test_defect_7_the_transformer_weighs_body_and_face_by_the_context():
    """With pooled streams: three tokens, of which the context's asks; another context, another mix."""
    head = head_of("cross_modal_transformer").eval()
    tokens = head.fuse.tokens(dict(zip(STREAMS, inputs(head, 4))))
    assert {name: part.shape[1] for name, part in tokens.items()} == {"context": 1, "body": 1, "face": 1}
    others = torch.cat([tokens["body"], tokens["face"]], 1)
    first = head.fuse.attend(tokens["context"], others, all_there(4, 2))
    second = head.fuse.attend(-tokens["context"], others, all_there(4, 2))
    assert (first - second).abs().max() > 1e-4
    none = head.fuse.attend(tokens["context"], others, torch.zeros(4, 2, dtype=torch.bool))
    assert torch.equal(none, torch.zeros_like(none))


@pytest.mark.parametrize("fusion", SOUND)
def test_each_head_learns_a_label_that_only_the_face_shows_and_bears_faces_missing(fusion):
    """Label 0 is the sign of a face feature; half of the faces are missing, and rubbish stands there."""
    head = head_of(fusion, vad=False)
    features = inputs(head, 256)
    mask = all_there(256)
    mask[::2, 2] = False
    targets = torch.stack([(features[2][:, 0] > 0).float(), *[torch.zeros(256)] * 3], 1)
    features[2][~mask[:, 2]] = 50.0
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(head(features, mask), targets).backward()
        optimizer.step()
    guess = head.eval()(features, mask)[:, 0] > 0
    seen = mask[:, 2]
    assert (guess == targets[:, 0].bool())[seen].float().mean() > 0.9


def test_dropout_keeps_its_share_and_the_mean_and_rests_in_evaluation():
    torch.manual_seed(0)
    drop = Dropout(0.25)
    dropped = drop(torch.ones(200, 500))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.75]))
    # Three standard deviations of 100,000 draws.
    assert abs((dropped == 0).float().mean() - 0.25) < 3 * (0.25 * 0.75 / 1e5) ** 0.5
    assert torch.equal(drop.eval()(torch.ones(5)), torch.ones(5))


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"fusion": "wieghted", "dims": DIMS}, "no fusion 'wieghted' .*weighted"),
        ({"dims": {"face": 5, "hand": 2}}, "no stream hand"),
        ({"dims": {}}, "a stream or more"),
        ({"dims": {"face": 0}}, "size 1 or more"),
        ({"dims": DIMS, "ablation": "none"}, "no ablation 'none'"),
        ({"dims": {"face": 5}, "ablation": "body"}, "ablation body leaves no stream of face"),
        ({"dims": DIMS, "tokens": {"body": 4}}, "weighted reads pooled features"),
        ({"dims": {"face": 5}, "fusion": "attention", "tokens": {"body": 4}}, "no such stream"),
        ({"dims": {"face": 5, "body": 3}, "fusion": "simple_published"}, "all three streams"),
    ],
)
def test_a_shape_that_can_not_be_is_refused_with_its_reason(config, reason):
    with pytest.raises(InputError, match=reason):
        FusionConfig(**config)


def test_streams_keep_their_order_and_wrong_shapes_are_named():
    config = FusionConfig(dims={"face": 5, "context": 7, "body": 6}, ablation="face_context")
    assert list(config.dims) == list(STREAMS) and streams_of(config) == ("context", "face")
    assert FusionConfig.model_validate_json(config.model_dump_json()) == config
    head = head_of("simple")
    features = inputs(head, 3)
    with pytest.raises(ValueError, match=r"features of body: shape \(3, 9\), not \(3, 6\)"):
        head([features[0], torch.zeros(3, 9), features[2]], all_there(3))
    with pytest.raises(ValueError, match="context, body, face"):
        head(features[:2], all_there(3, 2))


def test_counting_parameters_makes_none_and_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    count = parameter_count(FusionConfig(fusion="bottleneck", dims=DIMS, hidden=16, vad=True), LABELS)
    assert torch.equal(torch.rand(1), expected)
    assert count == sum(parameter.numel() for parameter in head_of("bottleneck").parameters())


def test_a_config_is_made_without_torch():
    code = (
        "import sys; from raymotion.models.fusion.config import FusionConfig; FusionConfig(dims={'face': 3});"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class _TooWide(nn.Module):
    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.width = config.hidden + 1

    def forward(self, features: dict[str, torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(present), self.width)


def _nothing(config: FusionConfig) -> None:
    return None


@pytest.mark.parametrize(
    "network, told",
    [("_TooWide", r"_TooWide\.forward returns of shape \(2, 9\)\. Return a tensor \(n, hidden\), here \(2, 8\)"),
     ("_nothing", "gives None, no nn.Module")],
)  # fmt: skip
def test_a_network_that_breaks_the_contract_is_named(monkeypatch: pytest.MonkeyPatch, network: str, told: str) -> None:
    monkeypatch.setitem(sys.modules, "networks_of_a_test", sys.modules[__name__])
    monkeypatch.setitem(FUSIONS, "odd", Fusion(f"networks_of_a_test:{network}"))
    with pytest.raises(InputError, match=rf"the fusion odd: .*{told}"):
        head = FusionHead(FusionConfig(dims={"context": 4, "body": 4}, hidden=8, fusion="odd"), 3)
        head([torch.ones(2, 4), torch.ones(2, 4)], torch.ones(2, 2, dtype=torch.bool))

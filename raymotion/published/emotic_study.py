"""Results of the public EMOTIC study: one seed, selected and scored on the test split of EMOTIC.

From its stored `evaluation_metrics.txt` files (tinaabishegan/EMOTIC-Multi-Label-Classification), as shares.
"""

from __future__ import annotations

from raymotion.published.studies import PublishedStage, PublishedStudy
from raymotion.vocabulary import EMOTIC_26

# Test mAP of each configuration, by the values of the fields that its stage varied.
_BACKBONES = {
    "swin swin efficientnet_b7": 0.3135,
    "swin swin mobilenet_v3": 0.3094,
    "swin efficientnet_b7 efficientnet_b7": 0.3007,
    "swin deit efficientnet_b7": 0.3003,
    "swin deit mobilenet_v3": 0.2996,
    "deit swin mobilenet_v3": 0.2992,
    "swin efficientnet_b7 mobilenet_v3": 0.2984,
    "deit swin efficientnet_b7": 0.2975,
    "efficientnet_b7 swin efficientnet_b7": 0.2966,
    "efficientnet_b7 swin mobilenet_v3": 0.2939,
    "deit deit efficientnet_b7": 0.2751,
    "deit deit mobilenet_v3": 0.2724,
    "deit efficientnet_b7 mobilenet_v3": 0.2709,
    "deit efficientnet_b7 efficientnet_b7": 0.2694,
    "efficientnet_b7 deit efficientnet_b7": 0.2684,
    "efficientnet_b7 deit mobilenet_v3": 0.2630,
    "efficientnet_b7 efficientnet_b7 efficientnet_b7": 0.2376,
    "efficientnet_b7 efficientnet_b7 mobilenet_v3": 0.2333,
}
_VARIED = {
    "fusion": (
        "model.fusion",
        {"weighted": 0.3139, "simple": 0.3135, "layer_norm": 0.3128, "hierarchical": 0.3100, "gated_residual": 0.3066,
         "bottleneck": 0.3028, "attention": 0.3025, "cross_modal_transformer": 0.2994, "transformation": 0.2986,
         "bilinear": 0.2882},
    ),
    "loss": (
        "loss.name",
        {"discrete": 0.3139, "bce": 0.3070, "focal": 0.3054, "asymmetric": 0.3021, "dice": 0.2260, "mllsc": 0.1748},
    ),
    "augmentation": ("augmentation", {"basic": 0.3173, "full": 0.3166, "none": 0.3139}),
    "resampling": ("resampling", {"mini": 0.3200, "none": 0.3173}),
}  # fmt: skip


def _stage(name: str, carried: str, test_map: float) -> PublishedStage:
    if name == "backbones":
        fields = [f"backbones.{stream}" for stream in ("context", "body", "face")]
        cells = [(dict(zip(fields, nets.split(), strict=True)), score) for nets, score in _BACKBONES.items()]
    else:
        field, scores = _VARIED[name]
        cells = [({field: value}, score) for value, score in scores.items()]
    return PublishedStage(name, carried, test_map, tuple(cells))


STUDY = PublishedStudy(
    data="EMOTIC",
    # With usable annotations.
    persons={"train": 23_266, "val": 3_315, "test": 7_203},
    stages=(
        _stage("backbones", "swin / swin / efficientnet_b7", 0.3135),
        _stage("fusion", "weighted", 0.3139),
        _stage("loss", "discrete", 0.3139),
        _stage("augmentation", "basic", 0.3173),
        _stage("resampling", "adasyn, mini", 0.3200),
    ),
    # The final configuration (stage 5), in the order of EMOTIC-26.
    final_ap=dict(
        zip(
            EMOTIC_26.labels,
            (
                0.4371, 0.1834, 0.1958, 0.5928, 0.0949, 0.7897, 0.1845, 0.3175, 0.2127, 0.2111, 0.0255, 0.8704, 0.1855,
                0.7266, 0.1773, 0.1062, 0.7763, 0.1285, 0.2902, 0.4943, 0.4119, 0.1567, 0.4009, 0.0903, 0.1572, 0.1030,
            ),
            strict=True,
        )
    ),
    final_argmax=(0.0814, 0.4455, 0.0814, 0.0408),
    noise=0.0042,
    noise_sentence="The published study has one seed for each configuration. A rerun of its first winner moved by "
    "0.0012, and one network that it ran under two names differs by 0.0042; its own steps from stage to stage are "
    "+0.0004, 0.0000, +0.0034 and +0.0027.",
)  # fmt: skip

"""What the public EMOTIC study printed: one seed, chosen and scored on the test split of EMOTIC.

From its stored `evaluation_metrics.txt` files (tinaabishegan/EMOTIC-Multi-Label-Classification). All are shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from raymotion.vocabulary import EMOTIC_26

# Persons of EMOTIC with usable annotations, by split.
PERSONS = MappingProxyType({"train": 23_266, "val": 3_315, "test": 7_203})


@dataclass(frozen=True)
class PublishedStage:
    """A stage of the public study: what it carried on, and that configuration's test mAP."""

    name: str
    carried: str
    test_map: float


STAGES = (
    PublishedStage("backbones", "swin / swin / efficientnet_b7", 0.3135),
    PublishedStage("fusion", "weighted", 0.3139),
    PublishedStage("loss", "discrete", 0.3139),
    PublishedStage("augmentation", "basic", 0.3173),
    PublishedStage("resampling", "adasyn, mini", 0.3200),
)
FINAL_MAP = STAGES[-1].test_map

# The same configuration trained twice (stage 1's best, stored and in the console log), and one network that was run
# under two names (transformation and bottleneck): all that is known of its noise.
SAME_CONFIGURATION_TWICE = 0.0012
SAME_NETWORK_TWICE = 0.0042

# Test AP of the final configuration (stage 5), in the order of EMOTIC-26.
FINAL_AP = MappingProxyType(
    dict(
        zip(
            EMOTIC_26.labels,
            (
                0.4371, 0.1834, 0.1958, 0.5928, 0.0949, 0.7897, 0.1845, 0.3175, 0.2127, 0.2111, 0.0255, 0.8704, 0.1855,
                0.7266, 0.1773, 0.1062, 0.7763, 0.1285, 0.2902, 0.4943, 0.4119, 0.1567, 0.4009, 0.0903, 0.1572, 0.1030,
            ),
            strict=True,
        )
    )
)  # fmt: skip
# Accuracy, precision, recall, F1 of its argmax.
FINAL_ARGMAX = (0.0814, 0.4455, 0.0814, 0.0408)


def published_stage(name: str) -> PublishedStage | None:
    """The public study's stage of this name, or of one that begins like it; None for a stage of another kind."""
    return next((stage for stage in STAGES if name.lower().startswith(stage.name[:4])), None)

"""What fusion end to end brings to the training loop: persons' crops as a stream, backbones whose last blocks learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.learning.losses.multilabel import make_loss
from raymotion.models.checkpoint import load_fusion
from raymotion.models.fusion.network import FusionConfig, input_size
from raymotion.models.fusion_tuned.network import TunedConfig, TunedStreams
from raymotion.models.fusion_tuned.recipe import FusionTunedRecipe
from raymotion.models.vision.backbones import BackboneIdentity, build
from raymotion.train.fusion import emotion_loss, set_vad_prior
from raymotion.train.loop import Batch, Workers, set_prior
from raymotion.train.person_crops import MASK, PersonReader
from raymotion.train.picture_feed import PictureFeed, Source
from raymotion.train.pictures import READ, Pictures, Portion, read_here
from raymotion.train.tuned_data import TunedData


class TunedTask:
    """A `Task` of the training loop: crops of up to three streams, their backbones, and a fusion head.

    Args:
        source: where crops come from; None: decoded by `threads` threads of this process.
    """

    def __init__(
        self, recipe: FusionTunedRecipe, data: TunedData, *, source: Source | None = None, threads: int = 1
    ) -> None:
        self.recipe, self.data, self.threads = recipe, data, threads
        self.source = source or self._read_here
        self.config = TunedConfig(
            fusion=FusionConfig.model_validate(data.head), identities=data.identities, tuned_blocks=recipe.tuned_blocks
        )
        self.identities = data.read_identities()
        self.criterion = make_loss(
            recipe.loss.name,
            rates=data.prior(soft=recipe.data.soft_targets),
            samples=len(data.splits["train"]),
            options=recipe.loss.options,
        )
        self.vad = self.config.fusion.vad

    @property
    def samples_per_epoch(self) -> int:
        return len(self.data.splits["train"])

    def build(self) -> TunedStreams:
        """Backbones with their weights, and the head that `init` names or a new one.

        The inputs of a new head are standardised by the features that the backbones give before the first step. Tuning
        moves them, but slowly (`backbone_lr`); the first epochs would otherwise be spent on their scale.
        """
        recipe, data = self.recipe, self.data
        model = TunedStreams(
            self.config, len(data.vocabulary), build=self._backbone, checkpointing=recipe.gradient_checkpointing
        )
        if recipe.init is not None:
            model.head.load_state_dict(load_fusion(recipe.init).model.state_dict())
            return model
        if not model.head.published:
            if recipe.statistics_samples:
                model.head.set_statistics(*self._statistics(model))
            if float(self.criterion.probabilities(torch.zeros(1, 1))) == 0.5:  # logits, not probabilities themselves
                set_prior(model.head.head, data.prior(soft=recipe.data.soft_targets))
            set_vad_prior(model.head, data.vad[data.splits["train"]])
        return model

    def _backbone(self, stream: str, identity: BackboneIdentity) -> Any:
        named = getattr(self.recipe.weights, stream)
        return build(identity, identity.weights if identity.is_random else named)

    def _statistics(self, model: TunedStreams) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Means and standard deviations, (D,), of each stream's features of some clean training persons."""
        recipe, data, fusion = self.recipe, self.data, self.config.fusion
        rows = np.random.default_rng([recipe.seed, 1]).permutation(data.splits["train"])[: recipe.statistics_samples]
        size = recipe.optimiser.batch_size
        portions = [Portion("statistics", 0, rows[a : a + size]) for a in range(0, len(rows), size)]
        device = "cuda" if recipe.use_gpu is not False and torch.cuda.is_available() else "cpu"
        sums = {name: torch.zeros(2, input_size(fusion, name), dtype=torch.float64) for name in fusion.dims}
        counts = dict.fromkeys(fusion.dims, 0)
        model.to(device).eval()
        with torch.no_grad():
            for _, pictures in self._read_here(portions, PersonReader(self.identities, damaged=recipe.data.damaged)):
                crops, mask = self.inputs(pictures, device)
                for number, (name, values) in enumerate(zip(fusion.dims, model.features(crops, mask), strict=True)):
                    if values is not None:
                        own = values[mask[:, number]].reshape(-1, values.shape[-1]).double().cpu()
                        sums[name] += torch.stack([own.sum(dim=0), own.square().sum(dim=0)])
                        counts[name] += len(own)
        model.to("cpu")
        means = {name: total[0] / max(1, counts[name]) for name, total in sums.items()}
        squares = {name: total[1] / max(1, counts[name]) for name, total in sums.items()}
        stds = {name: (squares[name] - means[name].square()).clamp(min=0).sqrt() for name in sums}
        # A feature that never varies, and a stream that nobody shows, tell nothing, and would be divided by nothing.
        stds = {name: torch.where(std < 1e-6, 1.0, std) for name, std in stds.items()}
        return {name: mean.float() for name, mean in means.items()}, {name: std.float() for name, std in stds.items()}

    def inputs(self, pictures: Pictures, device: str) -> tuple[list[Tensor | None], Tensor]:
        """Crops of each stream of the head, and the mask, on the device. None: an ablation leaves the stream out."""
        streams = list(self.config.fusion.dims)
        mask = np.zeros((len(pictures.status), len(streams)), dtype=bool)
        mask[:, [streams.index(name) for name in self.identities]] = pictures.arrays[MASK]
        crops = [
            # A copy: Ray's blocks are read-only, and torch warns of tensors on them.
            torch.from_numpy(np.array(pictures.arrays[name])).to(device) if name in self.identities else None
            for name in streams
        ]
        return crops, torch.from_numpy(mask).to(device)

    def _read_here(self, portions: Sequence[Portion], reader: Any) -> Iterator[tuple[Portion, Pictures]]:
        return read_here(portions, self.data.addresses, reader, threads=self.threads)

    def shape(self, model: nn.Module) -> dict[str, Any]:
        return dict(cast(TunedStreams, model).config.model_dump(mode="json"))

    def restore(self, shape: Mapping[str, Any]) -> TunedStreams:
        return TunedStreams(TunedConfig.model_validate(shape), len(self.data.vocabulary))

    def learning_rate(self, name: str) -> float:
        settings = self.recipe.optimiser
        return settings.backbone_lr if name.startswith("backbones.") else settings.lr

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return emotion_loss(self.criterion, logits, batch, vad_weight=self.recipe.vad_weight if self.vad else None)

    def feed(self, workers: Workers, *, first_epoch: int) -> TunedFeed:
        return TunedFeed(self, workers, first_epoch)


class TunedFeed(PictureFeed):
    """A `Feed` of the training loop: persons' crops from the stream."""

    def __init__(self, task: TunedTask, workers: Workers, first_epoch: int) -> None:
        super().__init__(task.recipe, task.data, workers, first_epoch, task.samples_per_epoch)
        self.task = task

    def read(self, portions: Sequence[Portion]) -> Iterator[tuple[Portion, Pictures]]:
        task, recipe = self.task, self.task.recipe
        reader = PersonReader(task.identities, recipe.augmentation, recipe.seed, recipe.data.damaged)
        yield from task.source(portions, reader)

    def train(self, epoch: int) -> Iterator[Batch]:
        task, data, device = self.task, self.task.data, self.workers.device
        answers = data.soft if task.recipe.data.soft_targets else data.hard
        for portion, pictures in self.training(epoch):
            assert pictures is not None
            # Of a person whose picture could not be read nothing is learned: not even that no evidence means the labels
            # of whoever that was.
            seen = pictures.status == READ
            vad = np.where(seen[:, None], data.vad[portion.rows], np.float32(np.nan))
            yield Batch(
                task.inputs(pictures, device),
                torch.from_numpy(answers[portion.rows]).to(device),
                weights=None if seen.all() else torch.from_numpy(seen.astype(np.float32)).to(device),
                vad=torch.from_numpy(vad).to(device) if task.vad else None,
                epoch=epoch,
            )

    def predict(self, model: nn.Module, split: str) -> np.ndarray:
        task, device = self.task, self.workers.device
        labels = len(task.data.vocabulary)
        parts = [torch.zeros(0, labels + 3 * task.vad)]
        was_training = model.training
        model.eval()
        for _, pictures in self.evaluated(split):
            assert pictures is not None
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
                output = model(*task.inputs(pictures, device)).float()
            parts.append(torch.cat([task.criterion.probabilities(output[:, :labels]), output[:, labels:]], 1).cpu())
        model.train(was_training)
        return torch.cat(parts).numpy()

"""FractalNet: its paths against calculations by hand, and the fault that made the public one's loss NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from raymotion.models.fractal.network import Block, FractalNet
from raymotion.models.fractal.recipe import FractalConfig

SMALL: dict[str, Any] = {"image_size": 16, "filters": [4, 6, 8], "kernels": [3, 3, 2]}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(**settings: Any) -> FractalNet:
    torch.manual_seed(0)
    return FractalNet(FractalConfig.model_validate({**SMALL, **settings}), 8)


def pictures(n: int = 6, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return made, torch.ones(n, dtype=torch.bool)


class Scaled(nn.Module):
    """In place of a convolution: multiplies, and counts its calls."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return maps * self.factor


def by_hand(primes: dict[tuple[int, int], float]) -> Block:
    """A block of three columns whose convolution of column c that ends at row r multiplies by primes[c, r]."""
    block = Block(1, 1, 3, 3, 0.0)
    for (column, row), factor in primes.items():
        block.columns[column][row // 2**column - 1] = Scaled(factor)  # type: ignore[operator,index]
    return block


PRIMES = {(0, 1): 2.0, (0, 2): 3.0, (0, 3): 5.0, (0, 4): 7.0, (1, 2): 11.0, (1, 4): 13.0, (2, 4): 17.0}


@pytest.mark.parametrize(
    ("keep", "expected", "calls"),
    [
        # Row 2 is the mean of 2 * 3 and 11, row 4 that of row 2 * 5 * 7, row 2 * 13 and 17.
        (lambda joined: joined, (8.5 * 5 * 7 + 8.5 * 13 + 17) / 3, 7),
        (lambda joined: [0], 2.0 * 3 * 5 * 7, 4),
        (lambda joined: [1] if len(joined) > 1 else joined, 11.0 * 13, 2),
        (lambda joined: [2], 17.0, 1),  # the join of row 2 has no column 2, and is not computed
        # A local draw: the first join keeps column 1, the last one columns 0 and 2.
        (lambda joined: {1: [0], 2: [1], 3: [0, 2]}[len(joined)], (11.0 * 5 * 7 + 17) / 2, 4),
    ],
)
def test_paths_are_those_calculated_by_hand(
    keep: Callable[[list[int]], list[int]], expected: float, calls: int
) -> None:
    block = by_hand(PRIMES)
    assert float(block(torch.ones(1, 1, 1, 1), keep)) == pytest.approx(expected)
    assert sum(unit.calls for column in block.columns for unit in column) == calls  # type: ignore[union-attr,misc]


def test_joins_take_the_columns_of_the_paper() -> None:
    seen: list[list[int]] = []

    def keep(joined: list[int]) -> list[int]:
        seen.append(joined)
        return joined

    by_hand(PRIMES)(torch.ones(1, 1, 1, 1), keep)
    assert sorted(seen) == [[0], [0], [0, 1], [0, 1, 2]]  # rows 1, 3, 2 and 4


def test_the_published_network_has_35_convolutions() -> None:
    config = FractalConfig(
        image_size=32, filters=(64, 128, 256, 512, 512), kernels=(3, 3, 3, 3, 2), dropout=(0, 0.1, 0.2, 0.3, 0.4)
    )
    with torch.device("meta"):
        own = FractalNet(config, 8)
    convolutions = [module for module in own.modules() if isinstance(module, nn.Conv2d)]
    # A block of three columns: three convolutions of its input, four of its width.
    widths = zip((3, 64, 128, 256, 512), config.filters, config.kernels, strict=True)
    expected = sum(kernel**2 * (3 * inputs * width + 4 * width**2) for inputs, width, kernel in widths)
    assert len(convolutions) == 35
    assert sum(module.weight.numel() for module in convolutions) == expected
    assert own.head.in_features == 512  # a map of one pixel, flattened or averaged


def test_drawn_paths_have_the_stated_rates() -> None:
    own = network(drop_path=0.25, global_share=0.4).train()
    columns: list[int] = []
    kept: list[int] = []
    torch.manual_seed(0)
    for _ in range(3000):
        keep = own._drawn()
        if keep is own._some or keep == own._some:
            kept += [len(keep([0, 1, 2]))]
            assert keep([0]) == [0]
        else:
            columns += keep([0, 1, 2])
            assert keep([0, 1]) == keep([0, 1, 2]), "one column of the whole network"
    assert len(columns) / 3000 == pytest.approx(0.4, abs=0.03)
    assert np.bincount(columns) / len(columns) == pytest.approx([1 / 3] * 3, abs=0.05)
    # Of three inputs, each kept with probability 0.75; one where none would be.
    assert np.bincount(kept, minlength=4) / len(kept) == pytest.approx(
        [0, 3 * 0.75 * 0.25**2 + 0.25**3, 3 * 0.75**2 * 0.25, 0.75**3], abs=0.04
    )


@pytest.mark.parametrize("settings", [{"global_share": 1.0}, {"drop_path": 0.95, "global_share": 0.0}, {}])
def test_bug_3_5_4_no_draw_gives_a_nan(settings: dict[str, Any]) -> None:
    """The public join divided by the number of kept inputs, which was 0 where the global column was not among them."""
    own = network(**settings).train()
    torch.manual_seed(1)
    seen: set[str] = set()
    for _ in range(40):
        own.zero_grad(set_to_none=True)
        own(*pictures()).square().sum().backward()
        for name, parameter in own.named_parameters():
            if parameter.grad is not None:
                seen.add(name)
                assert bool(parameter.grad.isfinite().all()), name
    assert seen == {name for name, _ in own.named_parameters()}, "each convolution learns in some batch"


def test_the_same_seed_draws_the_same_paths() -> None:
    def trained() -> torch.Tensor:
        own = network(dropout=[0.3]).train()
        torch.manual_seed(5)
        return torch.cat([own(*pictures()) for _ in range(6)])

    assert torch.equal(trained(), trained())


def test_prediction_joins_all_columns_or_takes_the_deepest() -> None:
    mean, deepest = network().eval(), network(predict_with="deepest").eval()
    assert torch.equal(mean(*pictures()), mean(*pictures())), "nothing is drawn"
    used = _called(mean), _called(deepest)
    assert used[0] == {0, 1, 2} and used[1] == {0}
    assert not torch.allclose(mean(*pictures()), deepest(*pictures()))


def _called(own: FractalNet) -> set[int]:
    """The columns whose convolutions run."""
    seen: set[int] = set()
    hooks = [
        unit.register_forward_hook(lambda *_, column=column: seen.add(column))  # type: ignore[misc]
        for block in own.blocks
        for column, units in enumerate(block.columns)  # type: ignore[arg-type]
        for unit in units
    ]
    own(*pictures())
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("settings", "measures"),
    [
        ({"global_share": 0.5}, {None}), ({"global_share": 1.0}, {0, 1, 2}),
        ({"global_share": 0.5, "predict_with": "deepest"}, {0}),
        ({"global_share": 0.0, "predict_with": "deepest"}, {None}),
    ],
)  # fmt: skip
def test_statistics_are_those_of_batches_like_a_prediction(settings: dict[str, Any], measures: set[int | None]) -> None:
    """A norm on the mean of several columns needs another variance than one on a single column."""
    own = network(**settings).train()
    last = own.blocks[-1].columns[0][-1][3]  # type: ignore[index,union-attr]
    found: set[int | None] = set()
    for seed in range(40):
        torch.manual_seed(seed)
        keep = own._drawn()
        column = None if keep == own._some else keep([0, 1, 2])[0]
        before = [norm.running_var.clone() for norm in own.norms]  # type: ignore[union-attr]
        torch.manual_seed(seed)
        own(*pictures())
        if any(not torch.equal(old, norm.running_var) for old, norm in zip(before, own.norms, strict=True)):
            found.add(column)
    assert found == measures and isinstance(last, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels": [3, 3, 5]}, "block 3 of 3 gets maps of 4 x 4"),
        ({"image_size": 8, "filters": [4, 4, 4, 4], "kernels": 1}, "block 4 of 4 gets maps of 1 x 1"),
        ({"kernels": [3, 3]}, "kernels has 2 values, and filters has 3"),
        ({"dropout": [0.1, 1.0, 0.0]}, "dropout is a share"),
        ({"filters": [4, 0, 4]}, "filters are numbers from 1"),
        ({"kernels": [3, 0, 2]}, "kernels are numbers from 1"),
        ({"columns": 9}, "columns"),
    ],
)
def test_shapes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FractalConfig.model_validate({**SMALL, "image_size": 16, **settings})

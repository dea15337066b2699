"""Mistakes in somebody else's kind, output, or loss are named before an epoch is trained: never "a fault of ours"."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymotion.config import load_settings
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import Diverged, InputError
from raymotion.learning.losses import dimensions, multilabel
from raymotion.learning.losses.dimensions import NumberLoss, make_dimension_loss
from raymotion.learning.losses.multilabel import NamedLoss, link_of, make_loss
from raymotion.models.inputs.values import ValuesInput
from raymotion.models.kind import Kind
from raymotion.models.outputs.base import forward
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import Distillation, LossSettings, MultiLabelRecipe, TrainRecipe
from raymotion.models.registry import _kinds, of_class
from raymotion.train.loop import train
from raymotion.train.prepare import prepare_data
from raymotion.train.task import Task
from raymotion.vocabulary import VALENCE_3


class Recipe(MultiLabelRecipe):
    kind: Literal["faulty"] = "faulty"


class Line(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)

    def forward(self, values: Tensor, value_mask: Tensor) -> Any:
        return self.layer(values)


class Faulty(Kind):
    """Emotions and valence from two numbers, as it should be; the tests break one method each."""

    name = "faulty"
    recipe = Recipe

    def inputs(self, recipe: Any) -> Any:
        return [ValuesInput(["arousal", "dominance"])]

    def outputs(self, recipe: Any, facts: Any) -> Any:
        return [MultiLabel.of_recipe(recipe, facts), Dimensions.of_facts(facts, ["valence"], name="valence")]

    def build(self, recipe: Any, training: Any) -> nn.Module:
        return Line()

    def shape(self, network: Any) -> Any:
        return {"width": network.layer.out_features}

    def restore(self, model: Any, inputs: Any, outputs: Any) -> nn.Module:
        return Line(model["width"])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    rows = [
        {
            "sample_id": f"s{i}", "group_id": f"g{i}", "source": "t", "split": ("train", "train", "val", "test")[i % 4],
            "arousal": float(rng.uniform(1, 7)), "dominance": float(rng.uniform(1, 7)), "valence": 1 + i % 7,
            "labels": [VALENCE_3.labels[i % 4 % 3]],
        }
        for i in range(40)
    ]  # fmt: skip
    path = str(tmp_path_factory.mktemp("contract") / "samples.parquet")
    write_samples(path, table_from_rows(rows, VALENCE_3, scale=(1.0, 7.0)))
    return path


@pytest.fixture
def trained(samples: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that trains a kind for an epoch, and returns the epochs that it reported."""
    monkeypatch.setattr(_kinds, "registered", {**_kinds.registered, "faulty": Faulty})

    def run(kind: type[Kind] = Faulty, **options: Any) -> list[Any]:
        monkeypatch.setitem(_kinds.registered, "faulty", kind)
        of_class(kind)
        optimiser = {"epochs": 1, "batch_size": 8}
        options = {"kind": "faulty", "data": {"samples": samples}, "optimiser": optimiser, "workers": 0, **options}
        recipe: TrainRecipe = load_settings(Recipe, options=options)
        reported: list[Any] = []
        train(Task(recipe, prepare_data(recipe)), report=lambda line, _: reported.append(line))
        return reported

    return run


def test_as_it_should_be(trained: Any) -> None:
    assert len(trained()) == 2  # the epoch, and the end


def broken(**methods: Any) -> type[Kind]:
    return type("Broken", (Faulty,), methods)


@pytest.mark.parametrize(
    "method, value, told",
    [
        ("inputs", None, r"Broken\.inputs returns None\. Return a list of inputs"),
        ("outputs", [], r"Broken\.outputs returns \[\]\. Return a list of outputs"),
        ("outputs", {"a": 1}, r"outputs returns \{'a': 1\}"),
        ("outputs", [3], r"outputs returns \[int\]"),
        ("shape", "wide", r"Broken\.shape returns 'wide'\. Return a dict"),
        ("shape", {"width": np.float32(3)}, r"Broken\.shape: .*float32 is not JSON"),
        ("shape", {"width": 9}, r"restores another network.*layer\.weight: the built one has \(4, 2\).*\(9, 2\)"),
    ],
)
def test_what_a_kind_returns_is_checked(trained: Any, method: str, value: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        trained(broken(**{method: lambda self, *_: value}))


def test_two_outputs_of_one_name(trained: Any) -> None:
    kind = broken(outputs=lambda self, recipe, facts: 2 * [MultiLabel.of_recipe(recipe, facts)])
    with pytest.raises(InputError, match=r"outputs called \['emotions', 'emotions'\]"):
        trained(kind)


def test_a_kind_without_shape_whose_network_has_no_config(trained: Any) -> None:
    with pytest.raises(InputError, match=r"Broken does not define shape.*JSON values"):
        trained(broken(shape=Kind.shape))


def test_a_kind_whose_recipe_is_none() -> None:
    with pytest.raises(InputError, match=r"recipe = None is no recipe.*TrainRecipe"):
        of_class(type("NoRecipe", (Faulty,), {"name": "no-recipe", "recipe": None}))
    _kinds.registered.pop("no-recipe")


def test_an_output_that_a_checkpoint_could_not_name(trained: Any) -> None:
    class Unregistered(MultiLabel):
        kind_of_output = "unregistered"

    with pytest.raises(InputError, match=r"no output is called 'unregistered'.*multilabel"):
        trained(broken(outputs=lambda self, recipe, facts: [Unregistered.of_recipe(recipe, facts)]))


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, values: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    "value, told",
    [
        (torch.zeros(5, 3), r"shape \(5, 3\), not \(n, 4\): 3 of emotions \+ 1 of valence"),
        (torch.zeros(5), r"shape \(5,\)"),
        ([torch.zeros(5, 3)], r"returns a list.*\(n, 4\)"),
        ({"emotions": torch.zeros(5, 3)}, r"mapping of emotions\. Return .*emotions, valence"),
        ({"emotions": torch.zeros(5, 3), "valence": torch.zeros(5, 1), "arousal": 1}, r"emotions, valence, arousal"),
        (
            {"emotions": torch.zeros(5, 3), "valence": torch.zeros(5)},
            r"for valence a value of shape \(5,\), not",
        ),
        ({"emotions": torch.zeros(5, 3), "valence": None}, r"for valence a value of NoneType"),
    ],
)
def test_what_a_network_returns_is_checked(value: Any, told: str) -> None:
    outputs = [MultiLabel(VALENCE_3), Dimensions(["valence"], scale=(1, 7), name="valence")]
    with pytest.raises(InputError, match=r"test_contract:Returns\.forward .*" + told):
        forward(Returns(value), {"values": torch.zeros(5, 2)}, outputs, 5)


def test_arguments_that_a_network_does_not_take() -> None:
    with pytest.raises(InputError, match=r"Line\.forward: .*'value_mask'.*give are values, images"):
        forward(Line(), {"values": torch.zeros(1, 2), "images": torch.zeros(1)}, [MultiLabel(VALENCE_3)], 1)
    # A TypeError inside the network is not about its arguments.
    broken_inside = Returns(None)
    broken_inside.forward = lambda values: len(3)  # type: ignore[arg-type, method-assign]
    with pytest.raises(TypeError, match="len"):
        forward(broken_inside, {"values": torch.zeros(1, 2)}, [MultiLabel(VALENCE_3)], 1)


def test_nan_before_anything_is_learned_is_not_called_a_high_learning_rate(trained: Any) -> None:
    def build(self: Kind, recipe: Any, training: Any) -> nn.Module:
        network = Line()
        with torch.no_grad():
            network.layer.bias[3] = np.nan
        return network

    with pytest.raises(Diverged, match=r"first step, before any weight was changed.*numbers for valence") as error:
        trained(broken(build=build))
    assert "learning rate" not in str(error.value)


# --- losses -----------------------------------------------------------------------------------------------------------
class Hinge(NamedLoss):
    """A network's number of -1 is a probability of 0, and 1 one of 1."""

    name = "hinge"

    class Options(NamedLoss.Options):
        width: float = 2.0

    def terms(self, logits: Tensor, targets: Tensor, epoch: int, weights: Tensor | None) -> Tensor:
        return (1 - logits * (2 * targets - 1)).clamp(min=0)

    @classmethod
    def probabilities(cls, numbers: Tensor, options: Any) -> Tensor:
        return (numbers / options.width + 0.5).clamp(0, 1)

    @classmethod
    def numbers(cls, probabilities: Tensor, options: Any) -> Tensor:
        return (probabilities - 0.5) * options.width


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that lists a class of this file as a loss."""

    def add(own: type[NamedLoss], name: str) -> None:
        setattr(__import__(__name__, fromlist=["x"]), own.__name__, own)
        monkeypatch.setitem(multilabel.LOSSES, name, f"{__name__}:{own.__name__}")

    multilabel._kind.cache_clear()
    yield add
    multilabel._kind.cache_clear()


def test_a_loss_with_its_own_link_starts_at_the_class_prior_and_distils_nothing(losses: Any) -> None:
    """(x + 1) / 2 of 0 is 1/2, as of a logit: nothing may be concluded from that."""
    losses(Hinge, "hinge")
    assert link_of("bce").logits and not link_of("hinge").logits
    output = MultiLabel(VALENCE_3, loss=LossSettings(name="hinge", options={"width": 4.0}))
    hard = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    from raymotion.models.outputs.base import Targets

    targets, rows, head = Targets({"hard": hard, "soft": hard}, np.ones(4, bool)), np.arange(4), nn.Linear(2, 3)
    output.start(head, targets, rows)
    assert head.bias.tolist() == pytest.approx([0.0, -1.0, -1.0])  # 4 (p - 1/2)
    assert output.decode(head.bias[None]).tolist() == [pytest.approx([0.5, 0.25, 0.25])]
    distilled = MultiLabel(VALENCE_3, loss=output.loss, distillation=Distillation(weight=0.5), soft=True)
    with pytest.raises(InputError, match="no logits"):
        distilled.criterion(targets, rows)


def test_a_link_that_leaves_0_to_1_is_refused(losses: Any, trained: Any) -> None:
    class Unbounded(Hinge):
        name = "unbounded"

        @classmethod
        def probabilities(cls, numbers: Tensor, options: Any) -> Tensor:
            return numbers * 100

    losses(Unbounded, "unbounded")
    with pytest.raises(InputError, match=r"unbounded turns .* into probabilities of .*from 0 to 1"):
        trained(loss={"name": "unbounded"})


def test_a_link_that_makes_nan_of_finite_numbers_is_named_not_the_learning_rate(losses: Any) -> None:
    class Root(Hinge):
        name = "root"

        @classmethod
        def probabilities(cls, numbers: Tensor, options: Any) -> Tensor:
            return numbers.sqrt()

    losses(Root, "root")
    output = MultiLabel(VALENCE_3, loss=LossSettings(name="root"))
    with pytest.raises(InputError, match=r"the loss root makes NaN .*which are finite\. Let its method `prob"):
        output.decode(torch.tensor([[-1.0, 0.2, 0.3]]))
    assert output.decode(torch.tensor([[float("nan"), 0.2, 0.3]])).isnan().any(), "the network's own"


def test_a_loss_that_is_none(losses: Any) -> None:
    class Static(NamedLoss):
        name = "static"

        @staticmethod
        def probabilities(numbers: Tensor) -> Tensor:  # type: ignore[override]
            return numbers

    losses(Static, "static")
    with pytest.raises(InputError, match=r"probabilities is not a class method"):
        make_loss("static")
    losses(Hinge, "another")
    with pytest.raises(InputError, match=r"Hinge is listed as 'another'.*name = \"another\""):
        make_loss("another")
    multilabel.LOSSES["another"] = f"{__name__}:Line"
    with pytest.raises(InputError, match=r"Line is not a loss\. Inherit NamedLoss"):
        make_loss("another")

    class Empty(NamedLoss):
        name = "empty"

    losses(Empty, "empty")
    with pytest.raises(InputError, match=r"Empty defines neither terms nor reduce"):
        make_loss("empty")(torch.zeros(2, 3), torch.zeros(2, 3))


class Summed(NumberLoss):
    def terms(self, values: Tensor, targets: Tensor) -> Tensor:
        return (values - targets).sum()


def test_a_loss_of_numbers_of_the_wrong_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dimensions.LOSSES, "summed", f"{__name__}:Summed")
    with pytest.raises(InputError, match=r"summed gives a tensor of shape \(\), not \(2, 3\).*Summed\.terms"):
        make_dimension_loss("summed")(torch.zeros(2, 3), torch.zeros(2, 3))
    monkeypatch.setitem(dimensions.LOSSES, "line", f"{__name__}:Line")
    with pytest.raises(InputError, match=r"Line is not a loss of numbers\. Inherit NumberLoss"):
        make_dimension_loss("line")


def test_one_bad_line_of_a_table_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch, runner: Any) -> None:
    monkeypatch.setitem(multilabel.LOSSES, "gone", "raymotion.nowhere:Gone")
    done = runner("kinds")
    assert done.code == 0 and "raymotion.nowhere:Gone cannot be imported" in done.out and "asymmetric" in done.out


def test_numbers_never_lie_beyond_their_scale(tmp_path: Path) -> None:
    output = Dimensions(["valence"], scale=(1, 10))
    assert output.decode(torch.tensor([[-0.2], [0.069], [0.55], [1.2]])).flatten().tolist() == [1, 1, 5.5, 10]


# --- what would be wrong without a word -------------------------------------------------------------------------------
class Discrete(MultiLabelRecipe):
    kind: Literal["discrete"] = "discrete"
    loss: LossSettings = LossSettings(name="discrete")


def test_a_default_loss_stays_if_only_its_options_are_given() -> None:
    given = load_settings(Discrete, assignments=["loss.options.weights=static"])
    assert given.loss == LossSettings(name="discrete", options={"weights": "static"})
    assert load_settings(Discrete, options={"loss": {"name": "focal"}}).loss == LossSettings(name="focal")
    assert Discrete.model_validate({"loss": {"options": {"weights": "mean"}}}).loss.name == "discrete"
    assert load_settings(Recipe, assignments=["loss.options.label_smoothing=0.1"]).loss.name == "bce"


class Detached(NamedLoss):
    name = "detached"

    def terms(self, logits: Tensor, targets: Tensor, epoch: int, weights: Tensor | None) -> Tensor:
        return (logits.detach() - targets).square()


class Number(NamedLoss):
    name = "number"

    def reduce(self, logits: Tensor, targets: Tensor, epoch: int, weights: Tensor | None) -> Any:
        return float(logits.mean())


class Vector(NamedLoss):
    name = "vector"

    def reduce(self, logits: Tensor, targets: Tensor, epoch: int, weights: Tensor | None) -> Any:
        return logits.mean(dim=0)


class NoInverse(Hinge):
    name = "no_inverse"

    @classmethod
    def numbers(cls, probabilities: Tensor, options: Any) -> Tensor:
        return probabilities


class NoNumbers(Hinge):
    name = "no_numbers"

    @classmethod
    def numbers(cls, probabilities: Tensor, options: Any) -> Any:
        return None


@pytest.mark.parametrize(
    "own, told",
    [
        (Detached, r"the loss of the output emotions has no gradient.*detach"),
        (Number, r"the loss of the output emotions is float, not a number with a gradient"),
        (Vector, r"the loss of the output emotions is a tensor of shape \(3,\)"),
        (NoInverse, r"the loss no_inverse: probabilities\(numbers\(p\)\) of p = .*inverse"),
        (NoNumbers, r"the loss no_numbers: numbers returns NoneType, not a tensor of \(3,\)"),
    ],
)
def test_a_loss_that_teaches_nothing_is_refused(losses: Any, trained: Any, own: type[NamedLoss], told: str) -> None:
    def build(self: Kind, recipe: Any, training: Any) -> nn.Module:
        network, output = Line(), training.outputs[0]
        output.start(nn.Linear(1, 3), training.data.targets_of(output), training.data.splits["train"])
        return network

    losses(own, own.name)
    with pytest.raises(InputError, match=told):
        trained(broken(build=build), loss={"name": own.name})


@pytest.mark.parametrize("rate", [-1.0, float("nan"), None, True, "0.1"])
def test_a_learning_rate_that_is_none_is_refused(trained: Any, rate: Any) -> None:
    with pytest.raises(InputError, match=r"Broken\.learning_rate returns .* for layer\.weight"):
        trained(broken(learning_rate=lambda *_: rate))


@pytest.mark.parametrize(
    "method, value, told",
    [
        ("build", None, r"Broken\.build returns a NoneType.*torch\.nn\.Module"),
        ("restore", None, r"Broken\.restore returns a NoneType.*torch\.nn\.Module"),
        ("describe", None, r"Broken\.describe returns None.*list of texts"),
        ("describe", [], r"Broken\.describe returns \[\]"),
    ],
)
def test_what_would_fail_after_training_fails_before(trained: Any, method: str, value: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        trained(broken(**{method: lambda *_: value}))


def test_a_network_without_a_trainable_weight(trained: Any) -> None:
    with pytest.raises(InputError, match=r"test_contract:Line has no weight that can be trained"):
        trained(broken(build=lambda *_: Line().requires_grad_(False)))


def test_fewer_rows_than_samples() -> None:
    with pytest.raises(InputError, match=r"Returns\.forward returns 2 rows for emotions, and there are 5 samples"):
        forward(Returns(torch.zeros(2, 3)), {"values": torch.zeros(5, 2)}, [MultiLabel(VALENCE_3)], 5)


@pytest.mark.parametrize(
    "row, told",
    [
        ({"colour": "red"}, r"a: there is no column 'colour'.*sample_id"),
        ({"captions": "hello"}, r"a: captions are a text.*list of texts"),
        ({"valence": 40.0}, r"valence is 40, and the scale is 1 to 9"),
    ],
)
def test_rows_that_are_not_what_they_seem(row: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        table_from_rows([{"sample_id": "a", "group_id": "a", "source": "t", **row}], scale=(1, 9))


def test_a_method_of_other_arguments_names_the_users_class(
    tmp_path: Path, samples: str, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call itself fails, so no line of the user's file is in the traceback."""
    (tmp_path / "kind_of_other_arguments.py").write_text(
        "from typing import Literal\n"
        "from raymotion.models.inputs.values import ValuesInput\n"
        "from raymotion.models.kind import Kind\n"
        "from raymotion.models.outputs.dimensions import Dimensions\n"
        "from raymotion.models.recipe import TrainRecipe\n"
        "class Recipe(TrainRecipe):\n    kind: Literal['other'] = 'other'\n"
        "class Other(Kind):\n    name, recipe = 'other', Recipe\n"
        "    def inputs(self, recipe): return [ValuesInput(['arousal'])]\n"
        "    def outputs(self, recipe, facts): return [Dimensions.of_facts(facts, ['valence'])]\n"
        "    def build(self, recipe): return None\n"
        "    def restore(self, model, inputs, outputs): return None\n"
    )
    (tmp_path / "r.yaml").write_text("kind: kind_of_other_arguments:Other\nworkers: 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_kinds, "registered", dict(_kinds.registered))
    done = runner("train", tmp_path / "r.yaml", "--samples", samples, "--out", tmp_path / "m")
    assert done.code == 1 and "build() takes 2 positional arguments" in done.err, done.err
    assert "or of " in done.err and "kind_of_other_arguments:Other" in done.err

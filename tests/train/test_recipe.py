"""Recipes: those that come along are valid, and mistakes in others are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymotion.config import recipes_folder
from raymotion.errors import InputError
from raymotion.models.visualbert.config import TeacherConfig
from raymotion.train.recipe import find_recipe, kind_of, load_recipe, read_recipe

SHIPPED = sorted(path.stem for path in recipes_folder().glob("teacher-*.yaml"))


EVERY = sorted(path.stem for path in recipes_folder().glob("*.yaml"))


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Descriptions of models of transformers, for the recipes that take one: reading a recipe needs no weights."""
    from transformers import BertConfig, CLIPConfig, CLIPImageProcessor, ViTConfig

    places = {}
    for name, config in (
        ("zero-shot", CLIPConfig()), ("hf-classifier", ViTConfig()), ("hf-text-classifier", BertConfig()),
    ):  # fmt: skip
        folder = tmp_path_factory.mktemp(name)
        config.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
        CLIPImageProcessor().save_pretrained(folder)
        places[name] = str(folder)
    places["joint-emotions"] = _joint_space(tmp_path_factory.mktemp("joint") / "model")
    return places


def _joint_space(folder: Path) -> str:
    """A joint space as it comes, for the recipe of emotions in one."""
    from raymotion.data.streams import CONTEXT
    from raymotion.models.checkpoint import save_checkpoint
    from raymotion.models.inputs.captions import Captions
    from raymotion.models.inputs.streams import CropInput, Stream
    from raymotion.models.joint.config import JointConfig
    from raymotion.models.joint.network import JointNetwork
    from raymotion.models.outputs.embedding import Embedding
    from raymotion.models.registry import get_kind
    from raymotion.models.text.tokenizer import train_tokenizer
    from raymotion.models.vision.backbones import identify

    identity, tokenizer = identify("test_resnet", "random:0", size=32), train_tokenizer(["a dog runs"])
    config = JointConfig(
        text="lstm", dim=4, inside=True, vector_dim=identity.dim, vector_identity=identity.to_dict(),
        vocab_size=len(tokenizer),
    )  # fmt: skip
    inputs = [Captions(64, tokenizer=tokenizer), CropInput([Stream(CONTEXT, "test_resnet", identity)])]
    outputs = [Embedding(4)]
    save_checkpoint(folder, get_kind("joint"), JointNetwork(config, outputs[0]), inputs, outputs, training={})
    return str(folder)


@pytest.mark.parametrize("name", EVERY)
def test_every_recipe_is_read_and_its_kind_accepts_it(name: str, described: dict[str, str]) -> None:
    recipe = read_recipe(find_recipe(name), options={"source": described[name]} if name in described else {})
    assert kind_of(recipe).recipe is type(recipe)
    kind_of(recipe).check_recipe(recipe)


@pytest.mark.parametrize("name", SHIPPED)
def test_recipes_that_come_along_are_valid(name: str) -> None:
    recipe = load_recipe(name, options={"data": {"samples": "s.parquet"}})
    TeacherConfig.model_validate(recipe.model)
    assert recipe.data.samples == "s.parquet"
    assert Path(find_recipe(f"recipes/{name}.yaml")).resolve() == Path(find_recipe(name)).resolve()


def test_the_teachers_that_come_along() -> None:
    assert SHIPPED == [
        "teacher-demo", "teacher-minilm", "teacher-minilm-finetuned", "teacher-visualbert",
        "teacher-visualbert-published", "teacher-visualbert-small",
    ]  # fmt: skip
    published = TeacherConfig.model_validate(
        load_recipe("teacher-visualbert", options={"data": {"samples": "s"}}).model
    )
    assert (published.hidden_size, published.layers, published.heads, published.intermediate_size) == (
        768,
        12,
        12,
        3072,
    )


def test_options_over_the_file_and_set_over_options(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "kind: teacher-visualbert\noptimiser: {epochs: 3, lr: 0.1}\ndata: {samples: a.parquet}\nmodel: {size: tiny}"
    )
    recipe = load_recipe(
        str(path), options={"seed": 4, "workers": None, "optimiser": {"epochs": 5}}, assignments=("optimiser.epochs=7",)
    )
    assert (recipe.optimiser.epochs, recipe.optimiser.lr, recipe.seed, recipe.workers) == (7, 0.1, 4, 1)
    assert recipe.data.samples == "a.parquet"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: {size: tiny}", "names no kind of model.* kind: teacher-visualbert"),
        ("{kind: teacher-visualbert, model: {size: tiny}}", "names no data"),
        ("{kind: fusion, backbones: {body: swin}}", "names no sample table"),
        ("{kind: student, data: {sample: x}}", r"there is no setting data.sample \(there are: .*samples, .*labels"),
        ("{kind: student, optimiser: {lr: fast}}", "setting optimiser.lr = 'fast'"),
        ("{kind: fusion, optimiser: {backbone_lr: 0.01}}", "optimiser.backbone_lr = 0.01: .*frozen.* set optimiser.lr"),
        ("kind: painter", "painter.*fusion-tuned"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    assert "r.yaml" in str(caught.value)


def test_unknown_recipes_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"one of: .*teacher-visualbert-small"):
        load_recipe("teacher-x")

"""Registry of the kinds of models.

Third-party kinds are added by the entry point `raymotion.kinds` of an installed package, by `register`, by
`kind: package.module:Class` in a recipe, or by the environment variable `RAYMOTION_KINDS`, a list of such places.
Checkpoints never cause an import: their kind must already be known.
"""

from __future__ import annotations

from functools import cache

from raymotion.errors import InputError
from raymotion.models import kind as kinds
from raymotion.models.kind import Kind
from raymotion.models.recipe import TrainRecipe
from raymotion.registry import Registry

KINDS: dict[str, str] = {
    "teacher-visualbert": "raymotion.models.visualbert.kind:VisualBertKind",
    "student": "raymotion.models.student.kind:StudentKind",
    "fusion": "raymotion.models.fusion.kind:FusionKind",
    "fusion-tuned": "raymotion.models.fusion_tuned.kind:FusionTunedKind",
    "two-path": "raymotion.models.two_path.kind:TwoPathKind",
    "mlp": "raymotion.models.vector.kind:MlpKind",
    "regressor": "raymotion.models.vector.kind:RegressorKind",
    "two-input": "raymotion.models.vector.kind:TwoInputKind",
    "joint": "raymotion.models.joint.kind:JointKind",
    "joint-emotions": "raymotion.models.joint_emotions.kind:JointEmotionsKind",
    "fractal": "raymotion.models.fractal.kind:FractalKind",
    "preact-resnet": "raymotion.models.preact_resnet.kind:PreactResNetKind",
    "zero-shot": "raymotion.models.wrapped.kind:ZeroShotKind",
    "hf-classifier": "raymotion.models.wrapped.kind:ClassifierKind",
    "hf-text-classifier": "raymotion.models.wrapped.kind:TextClassifierKind",
    "stored-probabilities": "raymotion.models.stored.kind:StoredKind",
    "vlm": "raymotion.models.vlm.kind:VlmKind",
}
_kinds: Registry[Kind] = Registry("kind of model", Kind, "raymotion.kinds", lambda: KINDS, "RAYMOTION_KINDS")  # type: ignore[type-abstract]


def register(kind: type[Kind]) -> type[Kind]:
    """Registers a kind; usable as a class decorator. Raises an `InputError` if the name is taken."""
    return _kinds.register(kind.name, kind)


def kind_names() -> list[str]:
    """Returns the names of all known kinds: raymotion's own, installed, and registered ones."""
    return _kinds.names()


def get_kind(name: str, *, path: object = None, may_import: bool = False) -> Kind:
    """Returns the kind of this name.

    Args:
        path: the file that contains the name, for messages.
        may_import: whether `name` may be `package.module:Class`, which is imported. Only for a user's own recipe.

    Raises:
        InputError: the kind is unknown; the message lists those known.
    """
    found = _kinds.get(name, path=path, may_import=may_import)
    if ":" in name:
        own = _kinds.require_own_name(found, name, path=path)
        if own not in _kinds.names():
            _kinds.register(own, found)
    return _instance(found)


def place_of(name: str) -> str:
    """Returns the name of a kind for a recipe: `module:Class` for a kind known in this process only."""
    if name in _kinds.places():
        return name
    found = _kinds.get(name)
    return kinds.place_of(found)


def of_class(kind: type[Kind]) -> Kind:
    """Returns the kind of a class sent by another process, and registers it here if necessary."""
    if kind.name not in _kinds.places():
        _kinds.registered[kind.name] = kind
    return _instance(_kinds.get(kind.name))


@cache
def _instance(kind: type[Kind]) -> Kind:
    place = kinds.place_of(kind)
    missing = sorted(kind.__abstractmethods__) + [name for name in ("name", "recipe") if not hasattr(kind, name)]
    if missing:
        raise InputError(f"the kind {place} does not define {', '.join(missing)}", remedy="Add it to the class.")
    if not (isinstance(kind.recipe, type) and issubclass(kind.recipe, TrainRecipe)):
        raise InputError(f"the kind {place}: recipe = {kind.recipe!r} is no recipe", remedy="Inherit TrainRecipe.")
    return kind()

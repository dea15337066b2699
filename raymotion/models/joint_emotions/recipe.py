"""The recipe of emotions read from a joint space: zero-shot by the words for each, or a layer on its vectors."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raymotion import storage
from raymotion.config import Metavar
from raymotion.models.recipe import MultiLabelRecipe, OptimiserSettings, PictureDataSettings
from raymotion.models.text.prompts import TEMPLATES, PromptedSource


class JointEmotionsSource(PromptedSource):
    """A joint space of pictures and captions, and the words for each emotion."""

    source: Annotated[str, Metavar("MODEL")] = Field(description="Checkpoint of the kind `joint`: folder or address.")


class JointEmotionsDataSettings(PictureDataSettings):
    """The labelled samples that the layer is fitted to.

    Attributes:
        embeddings: folders made by `raymotion features embeddings` (or `import`) from these samples, by the backbone
            that the joint space reads; none: that backbone reads the pictures, if it is inside the joint space.
    """

    embeddings: list[str] = Field(default_factory=list)


class JointEmotionsRecipe(JointEmotionsSource, MultiLabelRecipe):
    """A layer on the vectors of a joint space, which stays as it is.

    Attributes:
        augmentation: none, as the vectors of cached features.
    """

    paths: ClassVar[tuple[str, ...]] = ("source", "vocabulary", "prompts")
    places: ClassVar[tuple[str, ...]] = (*MultiLabelRecipe.places, "source")

    kind: Literal["joint-emotions"] = "joint-emotions"
    data: JointEmotionsDataSettings = JointEmotionsDataSettings()
    augmentation: Literal["none"] = "none"
    optimiser: OptimiserSettings = OptimiserSettings()
    model: dict[str, Any] = Field(default_factory=dict, max_length=0)

    @model_validator(mode="after")
    def _learns_from_labels(self) -> Self:
        given = [name for name in ("templates", "prompts") if name in self.model_fields_set]
        if self.data.samples and given and (self.prompts or self.templates != list(TEMPLATES)):
            raise ValueError(f"{given[0]} is for `raymotion wrap`: a layer fitted to labelled samples reads no words")
        return self

    def sources(self) -> dict[str, str]:
        return {"source": self.source}

    def with_absolute_paths(self) -> JointEmotionsRecipe:
        recipe = super().with_absolute_paths()
        return recipe.model_copy(update={"source": storage.absolute(self.source)})

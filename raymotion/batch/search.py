"""Search in a labelled folder of vectors: the pictures, or captions, that are most similar to a sentence or a picture.

    raymotion.search("a dog at sunset", "labels/").frame()
    index = raymotion.SearchIndex("labels/")          # for several queries: the model is loaded once
    index.search(image="photo.jpg", top=20)

The search is exact. NumPy compares the parts one after the other and keeps the best rows, so that the memory needed
does not grow with the folder. FAISS, if it is installed, holds all vectors in memory and answers further queries
faster.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.batch.label_dataset import read_labels_record, read_parts, read_rows
from raymotion.data.captions import is_readable, one_line
from raymotion.data.images.marks import PictureMark
from raymotion.data.parts import JOB
from raymotion.errors import InputError
from raymotion.learning.nearest import cosines, unit
from raymotion.models.inputs.captions import Captions
from raymotion.models.outputs.embedding import TEXT, Embedding
from raymotion.models.outputs.table import read_outputs
from raymotion.models.text.words import Words, shown_words, words_of
from raymotion.text_table import table_lines

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from raymotion.pipeline.predictor import Predictor

Engine = Literal["numpy", "faiss"]
TOP = 10
# Characters of a caption in a terminal.
WIDTH = 60
# Rows compared at a time: 64 MB of a thousand numbers each, in float64.
ROWS = 8192
# FAISS computes in float32: what it finds up to this much below the last of the best is compared again.
SLACK = 1e-5


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        rank: from 1.
        cosine: with the query, from -1 to 1.
        mark: of the picture that was labelled, if any.
    """

    rank: int
    cosine: float
    sample_id: str
    image_uri: str | None
    captions: list[str]
    mark: PictureMark | None = None


@dataclass(frozen=True)
class SearchResult:
    """The hits of one query, the most similar first.

    Attributes:
        text, image: the query; one of them is None. An image in memory is called `an image`.
        side: what was searched.
        searched: rows with a vector of that side. without: rows that have none.
        unknown_words: words of the text that the model does not know. words_not_read: those behind its longest text.
        words: number of words of the text.
    """

    index: str
    text: str | None
    image: str | None
    side: str
    engine: Engine
    searched: int
    without: int
    hits: list[Hit]
    unknown_words: tuple[str, ...] = ()
    words_not_read: tuple[str, ...] = ()
    words: int = 0

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {
            "index": self.index, "query": {"text": self.text, "image": self.image}, "side": self.side,
            "engine": self.engine, "searched": self.searched, "without_vector": self.without,
            "unknown_words": [*self.unknown_words], "words_not_read": [*self.words_not_read],
            "hits": [
                {"rank": own.rank, "cosine": own.cosine, "sample_id": own.sample_id, "image_uri": own.image_uri,
                 "captions": own.captions}
                for own in self.hits
            ],
        }  # fmt: skip

    def to_json(self) -> str:
        """Returns the result as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def frame(self) -> pd.DataFrame:
        """Returns a row for each hit: rank, cosine, sample_id, image_uri, captions."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["hits"], columns=["rank", "cosine", "sample_id", "image_uri", "captions"])

    def warnings(self) -> list[str]:
        """Returns sentences on words of the text that the model does not know, or did not read."""
        told = []
        if self.unknown_words:
            told.append(
                f"the model does not know {len(self.unknown_words):,} of the {self.words:,} words of the query "
                f"({shown_words(self.unknown_words)}): what it found may have nothing to do with them"
            )
        if self.words_not_read:
            told.append(f"the query is longer than the model reads: it did not read {shown_words(self.words_not_read)}")
        return told

    def lines(self) -> list[str]:
        """Returns a table for a terminal, and what was searched."""
        rows = [
            (f"{own.rank}", f"{own.cosine:.3f}", own.image_uri or own.sample_id, _said(own.captions))
            for own in self.hits
        ]
        missing = f", {self.without:,} rows have none" if self.without else ""
        return [
            *table_lines(("rank", "cosine", "picture", "captions"), rows, left=(2, 3)),
            f"{self.searched:,} {self.side} vectors searched{missing}",
        ]

    def __repr__(self) -> str:
        return "\n".join([*(f"warning: {own}" for own in self.warnings()), *self.lines()])


def _said(captions: Sequence[str]) -> str:
    """Returns the first caption, shortened, and how many more there are."""
    if not captions:
        return ""
    first = one_line(captions[0])
    first = first if len(first) <= WIDTH else f"{first[: WIDTH - 3].rstrip()}..."
    return first + (f" (and {len(captions) - 1} more)" if len(captions) > 1 else "")


class SearchIndex:
    """A labelled folder of vectors that is searched, with the model that made it.

    Args:
        folder: the folder that `raymotion label` wrote with a model of vectors.
        model: where the model lies now; None: where it lay when it labelled.
        engine: `numpy`, or `faiss` if it is installed.
        device, weights: for the model; see `raymotion.load`.

    Attributes:
        sides: what may be searched, such as image and text.

    Raises:
        InputError: the folder holds no vectors, or the model is another one than made them.
    """

    def __init__(
        self,
        folder: storage.PathLike,
        *,
        model: storage.PathLike | None = None,
        engine: Engine = "numpy",
        device: str = "cpu",
        weights: str | Sequence[str] | None = None,
    ) -> None:
        if engine not in ("numpy", "faiss"):
            raise InputError(f"no engine is called {engine!r}", remedy="Choose numpy or faiss.")
        if engine == "faiss":
            _faiss()
        self.folder, self.engine = storage.absolute(folder), engine
        self.record = read_labels_record(self.folder)
        self.output = self._vectors()
        self.sides = self.output.sides
        self._model_folder, self._device, self._weights = self._locate(model), device, weights
        self._model: Predictor | None = None
        self._held: dict[tuple[str, int], _Held] = {}

    def __repr__(self) -> str:
        return f"<raymotion search in {self.folder}: {' and '.join(self.sides)}, by {self._model_folder}>"

    def _vectors(self) -> Embedding:
        described = self.record.get("model")
        where = storage.join(self.folder, JOB)
        outputs = read_outputs((described or {}).get("outputs"), where=where)
        found = next((own for own in outputs if isinstance(own, Embedding)), None)
        if found is None:
            kind = (described or {}).get("kind", "model")
            raise InputError(
                f"holds no vectors to search: its labels are those of a {kind}",
                path=self.folder,
                remedy="Label the pictures with a model of pictures and captions in one space.",
            )
        return found

    def _locate(self, model: storage.PathLike | None) -> str:
        """Returns the folder of the model that made the vectors."""
        from raymotion.models.checkpoint import read_checkpoint_info

        made_by: Mapping[str, Any] = self.record["model"]
        folder = str(made_by["path"]) if model is None else str(model)
        try:
            fingerprint = read_checkpoint_info(folder).fingerprint
        except InputError as error:
            if model is not None:
                raise
            raise InputError(
                f"its model cannot be read: {str(error).rstrip('.')}", path=self.folder,
                remedy="Name it where it lies now: --model FOLDER.",
            ) from error  # fmt: skip
        if fingerprint != made_by["fingerprint"]:
            raise InputError(
                f"is another model ({fingerprint}) than the one that made the vectors of {self.folder} "
                f"({made_by['fingerprint']})",
                path=folder,
                remedy="Name that one: --model FOLDER, or label again.",
            )
        return folder

    @property
    def model(self) -> Predictor:
        """The model, loaded at the first query."""
        if self._model is None:
            from raymotion.pipeline.predictor import load

            self._model = load(self._model_folder, device=self._device, weights=self._weights)
        return self._model

    def search(
        self,
        text: str | None = None,
        *,
        image: str | os.PathLike[str] | np.ndarray | Image | None = None,
        top: int = TOP,
        side: str | None = None,
    ) -> SearchResult:
        """Finds the rows that are most similar to a text or to a picture; of equal ones the first by sample_id.

        Rows of one picture are found once, by the best of them.

        Args:
            text, image: the query, one of them; an image as in `Predictor.label`.
            top: how many rows, at least 1.
            side: what is searched; None: the first of `sides`, the pictures.

        Raises:
            InputError: neither or both are given, the model does not read the query, or there is no such side, or no
                vector of it.
        """
        chosen = self._check(text, image, top, side)
        words = None if text is None else self._words(text)
        query = self._query(text, image)
        # Numbers that correct similarities between the sides say nothing of two vectors of one side.
        added = self.output.added if chosen == (TEXT if text is not None else self.sides[0]) else 0
        query = query[: len(query) - added]
        key = chosen, added
        held = self._held.get(key)
        if self.engine == "faiss" and held is None:
            held = self._held[key] = _Held.of(self._blocks(chosen, added))
        best = _Best(top)
        if held is None:
            searched = without = 0
            for block in self._blocks(chosen, added):
                best.offer(block, cosines(query[None], block.vectors)[0])
                searched, without = searched + len(block.rows), without + block.without
        else:
            held.offer_best(best, query)
            searched, without = held.searched, held.without
        if not searched:
            raise InputError(f"holds no {chosen} vector in its {without:,} rows: nothing to search", path=self.folder)
        found = best.hits()
        rows = read_rows(self.folder, [row for row, _ in found])
        hits = [
            Hit(rank, cosine, row.sample_id, row.image_uri, row.captions, row.mark)
            for rank, ((_, cosine), row) in enumerate(zip(found, rows, strict=True), 1)
        ]
        shown = os.fspath(image) if isinstance(image, str | os.PathLike) else None if image is None else "an image"
        result = SearchResult(self.folder, text, shown, chosen, self.engine, searched, without, hits)
        if words is None:
            return result
        return replace(result, unknown_words=words.unknown, words_not_read=words.not_read, words=words.count)

    def _check(self, text: str | None, image: object, top: int, side: str | None) -> str:
        if (text is None) == (image is None):
            told = "neither a text nor an image is given" if text is None else "a text and an image are given"
            raise InputError(f"{told} to search for", remedy="Give one of them.")
        if text is not None and not is_readable(text):
            raise InputError("the text to search for is empty", remedy="Give a sentence, or a picture: --image FILE.")
        if top < 1:
            raise InputError(f"top is {top}: at least one row is found", remedy="Give 1 or more.")
        if side is not None and side not in self.sides:
            raise InputError(
                f"has no {side} vectors", path=self.folder, remedy=f"Choose --side {' or '.join(self.sides)}."
            )
        return self.sides[0] if side is None else side

    def _words(self, text: str) -> Words | None:
        """Returns which words of a query the model knows; None if it reads texts in a way of its own.

        Raises:
            InputError: it knows none, not even in pieces, or the index has no vectors of texts.
        """
        if TEXT not in self.sides:
            raise InputError(
                f"has no text vectors, but those of {' and '.join(self.sides)}", path=self.folder,
                remedy="Search by a picture: --image FILE.",
            )  # fmt: skip
        model = self.model.model
        captions = next((own for own in model.inputs if isinstance(own, Captions) and own.used), None)
        if captions is None:
            return None
        words = words_of(captions, model.info.training, text)
        if words.says_nothing:
            raise InputError(
                f"the model knows no word of the query: {shown_words(words.unknown)}", path=self._model_folder,
                remedy="Use the words of the captions that it learned from.",
            )  # fmt: skip
        return words

    def _query(self, text: str | None, image: Any) -> np.ndarray:
        """Returns the unit vector (D,) of the query."""
        pixels = image
        if isinstance(image, str | os.PathLike):
            from raymotion.pipeline.predictor import read_picture

            # Before the model is loaded, which takes seconds, so that a misspelt name is told at once.
            pixels = read_picture(image)
            pixels = pixels if self.model.min_side is None else image
        found = self.model.embed(pixels, text)
        if not found:
            raise InputError("gives no vector for this query", path=self._model_folder)
        return next(iter(found.values()))

    def _blocks(self, side: str, added: int) -> Iterator[_Block]:
        """Yields the vectors of a side, without its last `added` numbers, `ROWS` at a time."""
        column, start = f"{side}_embedding", 0
        for _, table in read_parts(self.folder, ["sample_id", "image_uri", column]):
            for batch in table.to_batches(max_chunksize=ROWS):
                yield _Block.of(batch, column, start, added)
                start += batch.num_rows


@dataclass(frozen=True)
class _Block:
    """Some rows of a folder that have a vector.

    Attributes:
        rows: (n,) their numbers in the folder.
        vectors: (n, D) float32.
        without: rows beside them that have no vector.
    """

    rows: np.ndarray
    ids: pa.Array
    uris: pa.Array
    vectors: np.ndarray
    without: int

    @classmethod
    def of(cls, batch: pa.RecordBatch, column: str, start: int, added: int) -> _Block:
        values = batch.column(column)
        there = np.flatnonzero(np.asarray(values.is_valid()))
        flat = values.drop_null().flatten().to_numpy(zero_copy_only=False)
        vectors = np.asarray(flat, np.float32).reshape(len(there), values.type.list_size)
        vectors = vectors[:, : vectors.shape[1] - added]
        chosen = pa.array(there)
        ids, uris = batch.column("sample_id").take(chosen), batch.column("image_uri").take(chosen)
        return cls(start + there, ids, uris, vectors, batch.num_rows - len(there))


class _Best:
    """The best of the rows that were offered, at most one of each picture."""

    def __init__(self, count: int) -> None:
        self.count = count
        # (-cosine, sample_id, picture, row), ascending.
        self.found: list[tuple[float, str, str, int]] = []

    @property
    def least(self) -> float:
        """The cosine that a row needs to be among them."""
        return -self.found[-1][0] if len(self.found) == self.count else -np.inf

    def offer(self, block: _Block, similar: np.ndarray) -> None:
        """Takes those of a block that are among the best.

        Args:
            similar: (n,) the cosines of its rows.
        """
        able = np.flatnonzero(similar >= self.least)
        # Sorted by cosine, most of them need not be looked at.
        for place in able[np.argsort(-similar[able], kind="stable")].tolist():
            if similar[place] < self.least:
                break
            sample_id, uri = block.ids[place].as_py(), block.uris[place].as_py()
            own = (-float(similar[place]), sample_id, f"\n{sample_id}" if uri is None else uri, int(block.rows[place]))
            same = next((other for other in self.found if other[2] == own[2]), None)
            if same is not None:
                if same <= own:
                    continue
                self.found.remove(same)
            self.found.append(own)
            self.found.sort()
            del self.found[self.count :]

    def hits(self) -> list[tuple[int, float]]:
        """Returns the rows and their cosines, the best first."""
        return [(row, -cosine + 0.0) for cosine, _, _, row in self.found]


@dataclass(frozen=True)
class _Held:
    """All vectors of a side in a FAISS index."""

    index: Any
    block: _Block
    searched: int
    without: int

    @classmethod
    def of(cls, blocks: Iterator[_Block]) -> _Held:
        every = list(blocks)
        index = _faiss().IndexFlatIP(every[0].vectors.shape[1] if every else 1)
        for own in every:
            index.add(unit(own.vectors).astype(np.float32))
        vectors = np.concatenate([own.vectors for own in every] or [np.zeros((0, 1), np.float32)])
        rows = np.concatenate([own.rows for own in every] or [np.zeros(0, np.int64)])
        ids = pa.concat_arrays([own.ids for own in every] or [pa.array([], pa.string())])
        uris = pa.concat_arrays([own.uris for own in every] or [pa.array([], pa.string())])
        without = sum(own.without for own in every)
        return cls(index, _Block(rows, ids, uris, vectors, without), len(rows), without)

    def offer_best(self, best: _Best, query: np.ndarray) -> None:
        """Offers at least every row that is among the best, with its cosine computed as NumPy does."""
        count = 2 * best.count
        while self.searched:
            count = min(count, self.searched)
            found, places = self.index.search(unit(query[None]).astype(np.float32), count)
            near = places[0].astype(np.int64)
            own = _Block(
                self.block.rows[near], self.block.ids.take(pa.array(near)), self.block.uris.take(pa.array(near)),
                self.block.vectors[near], 0,
            )  # fmt: skip
            best.found.clear()
            best.offer(own, cosines(query[None], own.vectors)[0])
            if count == self.searched or found[0, -1] < best.least - SLACK:
                return
            count *= 4


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "faiss is not installed",
            remedy="Leave --engine out: NumPy finds the same; or run `pip install 'raymotion[faiss]'`.",
        ) from error
    return faiss


def search(
    text: str | None,
    index: storage.PathLike,
    *,
    image: str | os.PathLike[str] | np.ndarray | Image | None = None,
    top: int = TOP,
    side: str | None = None,
    **options: Any,
) -> SearchResult:
    """Searches a labelled folder once; see `SearchIndex.search`.

    Args:
        text: a sentence; None with `image`.
        index: folder of a labelling job with a model of vectors.
        options: of `SearchIndex`: model, engine, device, weights.
    """
    return SearchIndex(index, **options).search(text, image=image, top=top, side=side)

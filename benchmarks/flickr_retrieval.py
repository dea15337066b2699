"""How well sentences find their picture, and pictures their sentence, beside regularised CCA and chance.

600 images of Flickr8k as 1,280 numbers each (EfficientNet-Lite0) with their 3,000 captions. For each seed, 450 images
(`numpy.random.default_rng(seed).permutation`) are for training, a tenth of them validation, and 150 are the test. Every
caption is a query of its own: R@1 is the share of the 750 captions whose picture is the first of 150, and the share of
the 150 pictures that have a caption of their own first among 750. Equal similarities count against a model.

    recipe      through `raymotion.train.fit` on the vectors, as they come, and a sentence model
    CCA         regularised canonical correlations of the same vectors and that sentence model's vectors of captions,
                its two penalties chosen on the validation images, then fitted to all 450
    CCA, same   the same on everything that the recipe reads (class names, several layers of the sentence model)

    python benchmarks/flickr_retrieval.py                  # 10 minutes on 2 cores
    python benchmarks/flickr_retrieval.py --set optimiser.epochs=1 --seeds 0
    python benchmarks/flickr_retrieval.py --save joint/    # also a model of all 600, to score on others
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent.parent / "../shared/data/flickr8k"
# Share of the images to learn from, and of these the share that is validation.
LEARNED, VALIDATION = 0.75, 0.1
BACKBONE = "tf_efficientnet_lite0"
IMAGE_PENALTIES, TEXT_PENALTIES = (1.0, 3.0, 10.0, 30.0), (0.3, 1.0, 3.0)


def split_of(n: int, seed: int) -> np.ndarray:
    """`train`, `val` or `test` of each image."""
    order, learned = np.random.default_rng(seed).permutation(n), round(LEARNED * n)
    validated = round(VALIDATION * learned)
    split = np.full(n, "test", dtype=object)
    split[order[:validated]], split[order[validated:learned]] = "val", "train"
    return split


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors (n, D) at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def recalls(images: np.ndarray, texts: np.ndarray, owners: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """R@1 of both directions among the images `rows`.

    Args:
        images: (n, D) vectors of all images. texts: (m, D), of all captions. owners: (m,), the image of each.
    """
    from raymotion.learning.metrics.retrieval import rank_queries, retrieval_metrics

    some = np.isin(owners, rows)
    ways = {
        "t2i": rank_queries(unit(texts[some]), unit(images[rows]), owners[some], rows),
        "i2t": rank_queries(unit(images[rows]), unit(texts[some]), rows, owners[some]),
    }
    found = {f"{way}_r1": retrieval_metrics(ranks.ranks)["recall_at_1"] for way, ranks in ways.items()}
    return {**found, "chance": float(np.mean([ranks.chance["recall_at_1"] for ranks in ways.values()]))}


def cca(
    images: np.ndarray, texts: np.ndarray, owners: np.ndarray, rows: np.ndarray, penalties: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """All images and captions in the space of CCA fitted to the images `rows`: written here, apart from the library."""
    some = np.isin(owners, rows)
    x, y = images[owners[some]].astype(np.float64), texts[some].astype(np.float64)
    means = x.mean(axis=0), y.mean(axis=0)
    x, y = x - means[0], y - means[1]
    roots = []
    for side, penalty in zip((x, y), penalties, strict=True):
        values, basis = np.linalg.eigh(side.T @ side / len(side))
        roots.append((basis / np.sqrt(values + penalty * values.mean())) @ basis.T)
    u, s, vt = np.linalg.svd(roots[0] @ (x.T @ y / len(x)) @ roots[1], full_matrices=False)
    return (images - means[0]) @ roots[0] @ u * s, (texts - means[1]) @ roots[1] @ vt.T * s


def best_cca(images: np.ndarray, texts: np.ndarray, owners: np.ndarray, split: np.ndarray) -> dict[str, float]:
    """R@1 on the test images of CCA whose penalties are the best on the validation images."""
    train, val, test = (np.flatnonzero(split == name) for name in ("train", "val", "test"))
    scored = []
    for penalties in itertools.product(IMAGE_PENALTIES, TEXT_PENALTIES):
        found = recalls(*cca(images, texts, owners, train, penalties), owners, val)
        scored.append((found["t2i_r1"] + found["i2t_r1"], penalties))
    chosen = max(scored)[1]
    return recalls(*cca(images, texts, owners, np.sort(np.concatenate([train, val])), chosen), owners, test)


def encoded(model: Any, features: np.ndarray, captions: list[list[str]]) -> dict[str, np.ndarray]:
    """Vectors of all images and of each caption in the model's space, and what its two heads read."""
    import torch

    from raymotion.models.joint.kind import texts_of

    network, tokens = model.network, model.inputs[0].tokens([[text] for own in captions for text in own])
    with torch.no_grad():
        vectors = network.vectors([torch.from_numpy(features)])
        numbers = network.pictures.numbers(vectors)
        said = torch.cat(list(texts_of(network, tokens, "cpu")))
        return {
            "images": network.encode_pictures(vectors).numpy(), "texts": network.encode_said(said).numpy(),
            "image numbers": network.pictures.head.standardised(numbers).numpy(),
            "text numbers": network.text_head.standardised(said).numpy(),
        }  # fmt: skip


def sentences(source: str, captions: list[list[str]]) -> np.ndarray:
    """The sentence model's own vectors of all captions, at length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from raymotion.weights import folder_of

    folder = folder_of(source)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts, parts = [text for own in captions for text in own], []
    with torch.no_grad():
        for start in range(0, len(texts), 128):
            words = tokenizer(texts[start : start + 128], padding=True, truncation=True, return_tensors="pt")
            mask = words["attention_mask"][..., None].float()
            parts.append((model(**words).last_hidden_state * mask).sum(1) / mask.sum(1))
    return unit(torch.cat(parts).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="folder of captions.csv and efficientnet_lite0.parquet")
    parser.add_argument("--recipe", default="joint")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--save", metavar="FOLDER", help="train the recipe on all 600 images, too, and write it here")
    arguments = parser.parse_args()

    import pyarrow as pa
    from transformers.utils import logging

    from raymotion.batch.feature_import import ImportSettings, import_vectors
    from raymotion.data.embeddings import Embeddings
    from raymotion.data.readers.flickr8k import Flickr8kReader
    from raymotion.data.samples import SCHEMA, write_samples
    from raymotion.models.checkpoint import load_model
    from raymotion.train.fit import fit
    from raymotion.train.recipe import load_recipe

    logging.disable_progress_bar()
    started = time.monotonic()
    table, _ = Flickr8kReader(path=str(Path(arguments.data) / "captions.csv"), no_split=True).read()
    ids, captions = (table.column(name).to_pylist() for name in ("sample_id", "captions"))
    owners = np.repeat(np.arange(len(ids)), [len(own) for own in captions])
    results: dict[str, list[dict[str, float]]] = {"recipe": [], "CCA": [], "CCA, same": []}
    with tempfile.TemporaryDirectory(prefix="raymotion-bench-") as folder:
        samples, embeddings = f"{folder}/samples.parquet", f"{folder}/embeddings"

        def train(split: np.ndarray, seed: int, out: str) -> Any:
            column = pa.array(split.tolist(), pa.string())
            write_samples(samples, table.set_column(SCHEMA.get_field_index("split"), SCHEMA.field("split"), column))
            options = {"data": {"samples": samples, "embeddings": [embeddings]}, "seed": seed, "workers": 0}
            recipe = load_recipe(arguments.recipe, options=options, assignments=tuple(arguments.assignments))
            return load_model(fit(recipe, out).info.folder)

        write_samples(samples, table)
        import_vectors(ImportSettings(
            vectors=str(Path(arguments.data) / "efficientnet_lite0.parquet"), samples=samples, out=embeddings,
            backbone=BACKBONE, weights=f"bundled:{BACKBONE}",
        ))  # fmt: skip
        found = Embeddings([embeddings])
        block = found.block("context", BACKBONE)
        features = np.asarray(block.array[block.row_of[found.rows(ids)], 0], dtype=np.float32)
        plain = sentences("bundled:all-MiniLM-L6-v2", captions)
        for seed in arguments.seeds:
            split = split_of(len(ids), seed)
            own = encoded(train(split, seed, f"{folder}/model-{seed}"), features, captions)
            test = np.flatnonzero(split == "test")
            results["recipe"].append(recalls(own["images"], own["texts"], owners, test))
            results["CCA"].append(best_cca(features, plain, owners, split))
            results["CCA, same"].append(best_cca(own["image numbers"], own["text numbers"], owners, split))
            told = ", ".join(
                f"{name} {line[-1]['t2i_r1']:.3f} {line[-1]['i2t_r1']:.3f}" for name, line in results.items()
            )
            print(f"seed {seed}: R@1 text to image, image to text: {told}", flush=True)
        if arguments.save:
            split = np.full(len(ids), "train", dtype=object)
            split[np.random.default_rng(0).permutation(len(ids))[: round(VALIDATION * len(ids))]] = "val"
            train(split, 0, arguments.save)

    def mean(name: str, figure: str) -> float:
        return statistics.mean(own[figure] for own in results[name])

    print(f"\n{len(ids)} images, {round(LEARNED * len(ids))} to learn from, the others for the test, "
          f"{len(arguments.seeds)} seeds")  # fmt: skip
    print(f"{'':12}{'text to image':>15}{'image to text':>15}{'both':>9}")
    for name in results:
        ways = mean(name, "t2i_r1"), mean(name, "i2t_r1")
        print(f"{name:12}{ways[0]:15.4f}{ways[1]:15.4f}{sum(ways) / 2:9.4f}")
    print(f"{'chance':12}{mean('recipe', 'chance'):15.4f}{mean('recipe', 'chance'):15.4f}")
    print(f"{time.monotonic() - started:.0f} s")
    figures = {
        "t2i_r1": mean("recipe", "t2i_r1"), "i2t_r1": mean("recipe", "i2t_r1"), "cca_t2i_r1": mean("CCA", "t2i_r1"),
        "cca_i2t_r1": mean("CCA", "i2t_r1"), "cca_same_t2i_r1": mean("CCA, same", "t2i_r1"),
        "cca_same_i2t_r1": mean("CCA, same", "i2t_r1"), "chance": mean("recipe", "chance"),
    }  # fmt: skip
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()

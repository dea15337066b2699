"""What the labels say of captions that the model could not read: as stages and sink, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raymotion import storage
from raymotion.batch.labels import LabelSink, _words
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import save_checkpoint
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.student.kind import StudentKind
from raymotion.models.student.network import Student, StudentConfig
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.pipeline.predict import Predict
from raymotion.pipeline.stages import Item
from raymotion.vocabulary import VALENCE_3

CAPTIONS = [["a happy dog", "犬が笑う happy"], ["\u200b", "a sad man"], ["犬 猫"], ["[PAD]", "\ufeff"], []]


def test_captions_without_a_known_word_are_no_input_and_the_share_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a happy dog", "a sad man"], size=60, min_frequency=1)
    config = StudentConfig(image_size=16, channels=(2,), embedding_size=4, text_size=4, hidden_size=8,
                           vocab_size=len(tokenizer))  # fmt: skip
    outputs = [MultiLabel(VALENCE_3)]
    inputs = [Captions(64, tokenizer=tokenizer), PictureInput(16, used=False)]
    info = save_checkpoint(tmp_path / "s", StudentKind(), Student(config, 3), inputs, outputs, training={})
    stage = Predict(str(tmp_path / "s"), info.fingerprint, StudentKind)
    stage.setup(1, "cpu")
    items = [Item({"sample_id": f"{i}", "image_uri": None, "captions": own}) for i, own in enumerate(CAPTIONS)]
    stage.process(items)
    assert [item.failure is None for item in items] == [True, True, False, False, False]
    failure = items[2].failure
    assert failure is not None and failure.reason == "no_input" and "a word that it knows" in failure.message
    sink = LabelSink(outputs, SelectionPolicy(), None, True)
    table = sink.encode(items[:2])
    assert table.column("captions").to_pylist() == [["a happy dog", "犬が笑う happy"], ["a sad man"]]
    assert table.column("unknown_words").to_pylist() == [pytest.approx(4 / 8), 0.0]
    storage.write_table(tmp_path / "labels" / "data/part-00000.parquet", table)
    told = _words(str(tmp_path / "labels"), ["a notice"])
    assert told["unknown_words"] == {"mean_share": 0.25, "rows": 2, "rows_with_many": 1, "many": 0.2}
    assert told["notices"][0] == "a notice" and "does not know 25% of the words" in told["notices"][1]
    storage.write_table(tmp_path / "labels" / "data/part-00000.parquet", table.slice(1))
    assert _words(str(tmp_path / "labels"), [])["notices"] == []

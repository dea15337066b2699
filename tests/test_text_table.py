import pytest

from raymotion.text_table import table_lines


def test_words_stand_left_and_figures_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "20"}.items():
        monkeypatch.setenv(name, value)
    long = "happy " * 30 + "end"
    rows = [["[bold]joy[/bold] :smile:", "0.5000", ""], [long, "12", "better"]]
    head, first, second = table_lines(["emotion", "value", "verdict"], rows, left=(0, 2))
    width = len(long)
    assert head == f"{'emotion':<{width}}   value  verdict"
    assert first == f"{'[bold]joy[/bold] :smile:':<{width}}  0.5000"
    assert second == f"{long}      12  better"


def test_a_table_without_rows_is_its_head() -> None:
    assert table_lines(["stage", "mAP"], []) == ["stage  mAP"]

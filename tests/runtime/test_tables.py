"""Tables as text, and CSV files that rows are added to."""

from __future__ import annotations

from pathlib import Path

import pytest

from fapn_zoo.runtime.tables import aligned, append_rows, as_csv, percent, read_rows

pytestmark = pytest.mark.unit
COLUMNS = ["name", "score", "note"]


def test_rows_come_below_those_that_are_there(tmp_path: Path) -> None:
    file = tmp_path / "new" / "table.csv"
    assert read_rows(file, COLUMNS) == [] and not file.parent.exists()
    append_rows(file, COLUMNS, [{"name": 'a "b", c', "score": 1.5, "unknown": 3}])
    append_rows(file, COLUMNS, [{"name": "d", "note": "two\nlines", "score": None}, {"score": 2}])
    assert file.read_text() == 'name,score,note\n"a ""b"", c",1.5,\nd,,"two\nlines"\n,2,\n'
    assert read_rows(file, COLUMNS) == [['a "b", c', "1.5", ""], ["d", "", "two\nlines"], ["", "2", ""]]


def test_a_file_without_its_last_line_end_or_with_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("name,score,note\n\na,1,x")
    append_rows(file, COLUMNS, [{"name": "b"}])
    assert file.read_text() == "name,score,note\na,1,x\nb,,\n"


def test_older_files_are_widened_and_others_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("name,score\na,1\n")
    with pytest.raises(ValueError, match="table.csv has the columns name,score; expected name,score,note"):
        append_rows(file, COLUMNS, [])
    assert read_rows(file, COLUMNS, least=2) == [["a", "1"]] and file.read_text() == "name,score\na,1\n"
    append_rows(file, COLUMNS, [{"note": "x"}], least=2)
    assert file.read_text() == "name,score,note\na,1,\n,,x\n"
    for text in ("name\n", "score,name\n", "name,score,note,more\n", "\nname,score,note\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="table.csv has the columns"):
            append_rows(file, COLUMNS, [{"note": "x"}], least=2)
        assert file.read_text() == text
    file.write_bytes(b"name,score,note\n\xff\n")
    with pytest.raises(ValueError, match="table.csv is no UTF-8 text"):
        read_rows(file, COLUMNS)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_rows(tmp_path, COLUMNS)


def test_text() -> None:
    assert (percent(None), percent(0.12345), percent(1)) == ("-", "12.35", "100.00")
    assert aligned([["name", "a", "bb"], ["x", "10", ""], ["longer"]]) == ["name     a  bb", "x       10    ", "longer"]
    assert as_csv([["a", 1], ["b,c", None]]) == 'a,1\n"b,c",\n'

"""`undertow inspect`: a table, one JSON object, files, or a line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undertow.cli import main


def test_inspect_prints_a_table_or_one_json_object(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    file = tmp_path / "model.pt"
    torch.save({f"layers.{i}.weight": torch.randn(8, 4) for i in range(3)}, file)
    assert (
        main(["inspect", str(file), "--lr", "0.1", "--weight-decay", "0.01", "--steps", "9"]) == 0
    )
    text = capsys.readouterr().out
    assert "layers.0" in text
    assert "e^-E" in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    written = ["--html", str(page), "--csv", str(table)]
    assert main(["inspect", str(file), "--json", *written]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["matrices"]) == 3
    assert captured.err == ""
    assert table.read_text().startswith("name,rows,cols,parameters")
    assert page.stat().st_size > 10_000


def test_inspect_says_in_a_line_what_it_cannot_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    for path in (tmp_path / "nothing.pt", tmp_path / "cut.safetensors", tmp_path):
        assert main(["inspect", str(path), "--html", str(tmp_path / "page.html")]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert captured.err.startswith("undertow: ")
    assert not (tmp_path / "page.html").exists()


HOSTILE = "layer\x1b[31m\u202e[bold]<b>.weight\nx"


def test_names_of_strangers_move_no_cursor(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "a\x1b[2Jfolder"
    folder.mkdir()
    file = folder / "model.safetensors"
    save_file({HOSTILE: torch.randn(4, 4)}, file)
    page = tmp_path / "page.html"
    assert main(["inspect", str(file), "--html", str(page)]) == 0
    shown = capsys.readouterr().out + page.read_text()
    assert "layer\\x1b[31m\\u202e[bold]" in shown
    assert "<b>" not in page.read_text()
    (folder / "cut.pt").write_bytes(b"x")
    assert main(["inspect", str(folder / "cut.pt")]) == 1
    assert main(["inspect", str(folder / "no\x1bsuch\n\u202efile.pt")]) == 1
    shown += capsys.readouterr().err
    assert not {"\x1b", "\u202e"} & set(shown)
    assert main(["inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matrices"][0]["name"] == HOSTILE


def test_a_path_that_is_not_utf8_is_a_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    file = tmp_path / "\udcff\udcfe.pt"
    with file.open("wb") as opened:
        torch.save({"w": torch.randn(4, 4)}, opened)
    table = tmp_path / "table.csv"
    options = ["--csv", str(table), "--html", str(tmp_path / "page.html"), "--against", str(file)]
    assert main(["inspect", str(file), *options]) == 0
    assert "hold the same values" in capsys.readouterr().out
    assert "\\udcff" in table.read_text()


def test_the_table_holds_spectra_and_what_they_were_held_against(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import polars as pl
    import torch

    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    base = torch.randn(5, 4)
    torch.save({"w": base}, other)
    torch.save({"w": base + torch.diag(torch.tensor([4.0, 3, 2, 1]))[[0, 1, 2, 3, 0]]}, one)
    table = tmp_path / "table.csv"
    assert main(["inspect", str(one), "--against", str(other), "--csv", str(table)]) == 0
    row = pl.read_csv(table).row(0, named=True)
    assert row["against"] == str(other)
    assert len([float(value) for value in row["spectrum"].split()]) == 4
    assert "other.pt" in capsys.readouterr().out

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

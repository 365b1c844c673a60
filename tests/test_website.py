"""What builds the site: formulas become MathML, figures shrink unseen, public names are found."""

from __future__ import annotations

import importlib
import re

import pytest
from website import check, claims, figures

from undertow.claims import ALL


@pytest.mark.parametrize("module", [own for page in check.REFERENCE.values() for own in page])
def test_the_names_that_are_read_are_those_that_are_there(module: str) -> None:
    face = importlib.import_module(f"undertow.{module}")
    names = check.public_names(module)
    assert names
    assert all(hasattr(face, name) for name in names)
    everything = [n for n in getattr(face, "__all__", names) if not n.startswith("_")]
    modules = {n for n in everything if isinstance(getattr(face, n), type(check))}
    assert sorted(names) == sorted(set(everything) - modules)


def test_a_page_that_lacks_something_is_told(tmp_path) -> None:
    (tmp_path / "index.html").write_text('<a href="gone.html">x</a> <a href="#here">y</a>')
    found = check.faults(tmp_path)
    assert "index.html points to gone.html, which does not exist" in found
    assert "index.html points to #here, which has no such anchor" in found
    assert "getting-started.html was not built" in found
    assert "reference/measure.html does not show undertow.measure.ranks" in found


def test_a_smaller_figure_is_the_same_picture() -> None:
    svg = (
        '<g transform="translate(0.25,-3.14159)"><path aria-label="rank: 0.123456" class="mark" '
        'd="M1.23456,7L.5555,2.5" stroke-opacity="0.8888"/><text>0.0001</text></g>'
    )
    small = figures.shrink(svg)
    assert small == (
        '<g transform="translate(0.2,-3.1)"><path d="M1.2,7L0.6,2.5" stroke-opacity="0.8888"/>'
        "<text>0.0001</text></g>"
    )
    assert figures.shrink(small) == small


def test_a_run_places_the_figures_that_pages_show(tmp_path, monkeypatch) -> None:
    docs, run = tmp_path / "docs", tmp_path / "run"
    (docs / "claims").mkdir(parents=True)
    (run / "figures").mkdir(parents=True)
    monkeypatch.setattr(figures, "DOCS", docs)
    with pytest.raises(ValueError, match=r"verdict\.json is missing"):
        figures.place(run)
    monkeypatch.setattr(figures.claims, "figures_named", lambda claim: [])
    (run / "verdict.json").write_text('{"claim": "low-rank"}')
    (docs / "index.md").write_text("![Spectra](claims/greedy-low-rank/spectra.svg)")
    with pytest.raises(ValueError, match="no page shows a figure of low-rank"):
        figures.place(run)
    (docs / "index.md").write_text("![Ranks](claims/low-rank/rank.svg)")
    with pytest.raises(ValueError, match=r"low-rank/rank\.svg, which .* does not have"):
        figures.place(run)
    (run / "figures" / "rank.svg").write_text("<svg/>")
    (run / "figures" / "other.svg").write_text("<svg/>")
    placed = figures.place(run)
    assert [path.name for path in placed] == ["rank.svg", "verdict.json"]
    assert all(path.parent == docs / "claims" / "low-rank" for path in placed)


@pytest.mark.parametrize("name", ALL)
def test_a_claims_page_is_built_from_its_parts(name: str) -> None:
    """Its figures and the verdict are there, no placeholder is left, no rule is copied by hand."""
    stored = claims.DOCS / "claims" / name
    if not (stored / "verdict.json").exists():
        pytest.skip("no run is stored beside the page")
    text = claims.page(name, stored)
    assert "<!--" not in text
    assert text.startswith(f"# `{name}`")
    assert "| prediction | rule |" in text
    assert "checks passed." in text
    named = claims.figures_named(name)
    assert named
    assert all((stored / f"{figure}.svg").is_file() for figure in named)


class TestFormulas:
    """They need what only the site needs."""

    @pytest.fixture
    def html(self):
        markdown = pytest.importorskip("markdown")
        pytest.importorskip("latex2mathml")
        extensions = ["pymdownx.arithmatex", "website.mathml"]
        options = {"pymdownx.arithmatex": {"generic": True}}
        return lambda text: markdown.markdown(
            text, extensions=extensions, extension_configs=options
        )

    def test_tex_becomes_mathml(self, html) -> None:
        inline = html("So $e^{-E}$ it is.")
        assert re.search(r"So <span .*<math .*<msup><mi>e</mi>.*</math></span> it is\.", inline)
        assert '<math display="block">' in html("$$\nx < y\n$$")
        assert "$" not in inline

    def test_code_and_money_stay(self, html) -> None:
        assert "<math" not in html("`$x$` costs $5 or $6")

    def test_what_cannot_be_set_is_told(self, html) -> None:
        with pytest.raises(ValueError, match=r"foo.* is unknown"):
            html(r"$\foo{x}$")

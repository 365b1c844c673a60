"""Formulas of the site as MathML, written when it is built.

`pymdownx.arithmatex` finds TeX between dollar signs; this Markdown extension sets what it found.
Pages then need no script, no font and no network, and a screen reader can read them.
"""

from __future__ import annotations

from html import unescape
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor


def set_formula(tex: str, *, block: bool) -> ElementTree.Element:
    """The `math` element of a formula in TeX.

    Raises:
        ValueError: the formula cannot be read, or uses a command that has no MathML.
    """
    try:
        math = ElementTree.fromstring(convert(tex, display="block" if block else "inline"))
    except Exception as error:
        raise ValueError(f"the formula {tex!r} cannot be set: {error!r}") from error
    for element in math.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML knows MathML without its namespace
        if "\\" in (element.text or ""):
            raise ValueError(f"the formula {tex!r} cannot be set: {element.text} is unknown")
    return math


class _Formulas(Treeprocessor):
    """Puts MathML in place of the TeX that `arithmatex` (generic) has marked."""

    def run(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            if element.get("class") != "arithmatex":
                continue
            tex = unescape((element.text or "").strip())
            element.text = None
            element.append(set_formula(tex[2:-2].strip(), block=element.tag == "div"))


class MathML(Extension):
    """The Markdown extension `website.mathml`."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Run after the inline patterns, which come at 20, have found the formulas."""
        md.treeprocessors.register(_Formulas(md), "mathml", 15)


def makeExtension(**options: object) -> MathML:
    """Markdown's way to load an extension by the name of its module."""
    return MathML(**options)

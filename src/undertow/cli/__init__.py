"""The command line: arguments in, calls out. Nothing heavy is imported before it is needed."""

from undertow.cli._main import main as main

__all__ = ["main"]

"""The reference reads rooms without importing them; this tells it what a lazy room makes public.

A room whose names resolve on first use lists them in its stub (`__init__.pyi`), and takes `__all__`
from there at run time, where griffe cannot see it.
"""

from __future__ import annotations

from typing import Any

import griffe


class LazyFaces(griffe.Extension):
    """Makes the names that a stub imports the exports of its room."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """All modules of a package are there, and stubs merged into them."""
        rooms = [pkg]
        while rooms:
            room = rooms.pop()
            rooms += [module for module in room.modules.values() if not module.is_alias]
            if "_lazy" in room.members and room.exports is None:
                room.exports = [
                    name
                    for name, member in room.members.items()
                    if member.is_alias and not name.startswith("_")
                ]

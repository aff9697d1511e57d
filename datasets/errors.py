"""The errors every layer may raise, and the look-up that names the nearest known name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")


class UserError(ValueError):
    """A mistake of the user, shown as one line."""


class DatasetError(UserError):
    """A data set or its store is missing, damaged, or not what it declares."""


class SealedSplitError(DatasetError):
    """The test split was asked for outside the one command that may read it."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the entry of `known` spelled most like `name`, or None when none is alike.

    Case does not count: `Wearables` is as near to `wearables` as can be.
    """
    by_folded = {entry.casefold(): entry for entry in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[close[0]] if close else None


def look_up(table: Mapping[str, T], name: str, *, kind: str) -> T:
    """Return `table[name]`.

    Args:
        table: the names that are known.
        name: the name the user wrote.
        kind: what the table holds, in the singular, for the message ("data set").

    Raises:
        UserError: no such entry; the message names the nearest one and all of them.
    """
    if name in table:
        return table[name]
    near = nearest(name, table)
    hint = "" if near is None else f" Did you mean '{near}'?"
    raise UserError(f"No {kind} is called '{name}'.{hint} Known: {', '.join(sorted(table))}.")

"""The errors every layer may raise, and the look-up that names the nearest known name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")

RENAMED: dict[str, tuple[str, ...]] = {
    "goal": ("direction",),
    "front": ("ehvi", "dominated"),
    "keep_gb": ("max_weights_gb",),
    "larger": ("overrides",),
    "made_up": ("synthetic_tunable",),
    "ordered": ("deterministic",),
    "stopping": ("early_stopping",),
    "trial_hours": ("max_trial_hours",),
    "value": ("score_epoch",),
}
"""Old names and what they are called now; which of several depends on the place."""


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
    raise UserError(unknown(name, table, kind=kind))


def unknown(name: str, known: Iterable[str], *, kind: str) -> str:
    """Return the message for a name that nothing has: its new name or the nearest, and all."""
    names = sorted(known)
    new = next((new for new in RENAMED.get(name, ()) if new in names), None)
    if new is not None:
        return f"`{name}` is now `{new}`."
    near = nearest(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    return f"No {kind} is called '{shorten(name)}'.{hint} Known: {', '.join(names)}."


def shorten(name: str) -> str:
    """Return a name for a message, cut to 80 characters."""
    return name if len(name) <= 80 else f"{name[:77]}..."

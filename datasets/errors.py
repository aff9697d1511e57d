"""Define the errors that every layer may raise, and look up names with suggestions."""

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
"""Old names and their current names; a message uses the one that is valid in its context."""


class UserError(ValueError):
    """An error made by the user, shown as one line."""


class DatasetError(UserError):
    """A dataset or its store is missing, damaged or inconsistent with its spec."""

    reason: str = ""
    """What is wrong, without the name of the file; the same for files with the same fault."""


class SealedSplitError(DatasetError):
    """The test split was requested outside the one command that may read it."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the entry of `known` most similar to `name`, or None; case is ignored."""
    by_folded = {entry.casefold(): entry for entry in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[close[0]] if close else None


def look_up(table: Mapping[str, T], name: str, *, kind: str) -> T:
    """Return `table[name]`.

    Args:
        table: the known names.
        name: the name that the user wrote.
        kind: what an entry is, for the message, such as "dataset".

    Raises:
        UserError: unknown name; the message suggests the most similar one and lists all.
    """
    if name in table:
        return table[name]
    raise UserError(unknown(name, table, kind=kind))


def unknown(name: str, known: Iterable[str], *, kind: str) -> str:
    """Return the message for an unknown name: its current name, or a suggestion and all names."""
    names = sorted(known)
    new = next((new for new in RENAMED.get(name, ()) if new in names), None)
    if new is not None:
        return f"`{name}` is now `{new}`."
    near = nearest(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    return f"No {kind} is called '{shorten(name)}'.{hint} Known: {', '.join(names)}."


def shorten(name: str) -> str:
    """Shorten a name for a message to 80 characters."""
    return name if len(name) <= 80 else f"{name[:77]}..."

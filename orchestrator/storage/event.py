"""Define the base class of all events of a study, and the key of a trial."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

JSON = dict[str, object]
Numbers = dict[str, float]
"""Metrics or costs by name."""
Groups = dict[str, Sequence[float]]
"""Samples by subject, or by fixed parts of a split without subjects: name -> (correct, count)."""
KEY_PATTERN = re.compile(r"(\w+)-(\d{1,9})", re.ASCII)


class EventError(ValueError):
    """The JSON is not an event of this version."""


@dataclass(frozen=True, slots=True, order=True)
class TrialKey:
    """The name of a trial within its study."""

    configuration_id: str
    replicate: int

    def __str__(self) -> str:
        return f"{self.configuration_id}-{self.replicate}"

    @classmethod
    def parse(cls, text: object) -> Self:
        """Parse the text of a key.

        Raises:
            EventError: the text is not a trial key, and so must not be used as a file name.
        """
        match = KEY_PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise EventError(f"{text!r:.80} is not the key of a trial")
        return cls(match[1], int(match[2]))


@dataclass(frozen=True, slots=True)
class Event:
    """A decision or an occurrence, journalled before anything acts on it."""

    kind: ClassVar[str] = ""

    def to_json(self) -> JSON:
        """Return the event as JSON, without its kind."""
        values = ((one.name, getattr(self, one.name)) for one in dataclasses.fields(self))
        return {name: str(v) if isinstance(v, TrialKey) else v for name, v in values}

    @classmethod
    def from_json(cls, body: JSON) -> Self:
        """Parse an event from its JSON.

        Raises:
            EventError: a field is missing, or a trial key is invalid.
        """
        values = {}
        for one in dataclasses.fields(cls):
            if one.name in body:
                values[one.name] = cls.parse_field(one.name, body[one.name])
            elif one.default is one.default_factory is dataclasses.MISSING:
                raise EventError(f"`{cls.kind}` has no `{one.name}`")
        return cls(**values)

    @classmethod
    def parse_field(cls, name: str, value: object) -> object:
        """Parse the value of one field from its JSON."""
        return TrialKey.parse(value) if name == "trial" else value

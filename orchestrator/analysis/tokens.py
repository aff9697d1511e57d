"""Find the pooling strides and token budgets of each modality on the front.

A stride and a token budget that pool alike are the same: the windows of the model's configuration
count, not the parameter that they were given by.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sftsearch.orchestrator.analysis.bound import BoundStudy
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.candidates.binding import Configuration
    from sftsearch.trainables.token_windows import Windows


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensKept:
    """A way to shorten a sequence of tokens, and in how many configurations."""

    stride: int | None
    """Tokens of the longest window that is pooled to one; None: the sequence is not pooled."""
    patch: int
    """Samples per token before pooling; of a joined sequence, the most of any modality."""
    num_tokens: int
    """Tokens before pooling."""
    num_kept: int
    """Tokens after pooling."""
    num_configurations: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensAmong:
    """How a sequence is shortened among some configurations."""

    num_configurations: int
    """All of them, without those whose sequences are unknown."""
    number: int
    """Configurations with this sequence."""
    num_joined: int
    """Those of them in which the modality is pooled as a part of the joined sequence."""
    kept: tuple[TokensKept, ...]
    """By rising stride; unpooled sequences are last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceTokens:
    """The tokens of one sequence in the configurations on and near the front."""

    name: str
    """A modality, or `joined` for the joined sequence of all modalities of a configuration."""
    num_tried: int
    """Finished configurations with this sequence."""
    on_front: TokensAmong
    near: TokensAmong
    """Configurations off the front whose difference from it is within noise."""


JOINED = "joined"
"""Name of the joined sequence in analysis and reports."""

Kept = tuple[int, int, int, int]
"""Stride (0: not pooled), patch, tokens before pooling, tokens after it."""


def tokens_of(front: Front, bound: BoundStudy) -> tuple[SequenceTokens, ...]:
    """Return the tokens of each modality, in the dataset's order, then of joined sequences.

    Empty if no sequence is shortened in different ways, or no configuration on the front has known
    sequences, such as without the dataset.
    """
    tried = [_sequences(c, bound) for c in front.finished]
    ways = {(name, kept) for found in tried for name, kept in found.items() if kept is not None}
    if bound.spec is None or len(ways) == len({name for name, _ in ways}):
        return ()
    on_front = [_sequences(c, bound) for c in front.points]
    if not any(on_front):
        return ()
    near = [_sequences(c, bound) for c in front.finished if c.indistinguishable]
    return tuple(
        SequenceTokens(
            name=name,
            num_tried=num_tried,
            on_front=_among(name, on_front),
            near=_among(name, near),
        )
        for name in (*bound.spec.modalities, JOINED)
        if (num_tried := sum(name in found for found in tried))
    )


def _among(name: str, configurations: Sequence[dict[str, Kept | None]]) -> TokensAmong:
    own = [found[name] for found in configurations if name in found]
    counts = Counter(kept for kept in own if kept is not None)
    ordered = sorted(counts.items(), key=lambda item: (not item[0][0], item[0]))
    return TokensAmong(
        num_configurations=sum(map(bool, configurations)),
        number=len(own),
        num_joined=own.count(None),
        kept=tuple(
            TokensKept(
                stride=stride or None,
                patch=patch,
                num_tokens=before,
                num_kept=after,
                num_configurations=number,
            )
            for (stride, patch, before, after), number in ordered
        ),
    )


def _sequences(c: ConfigurationSummary, bound: BoundStudy) -> dict[str, Kept | None]:
    """Return how each sequence is shortened; None for a modality that is joined with others.

    Empty for models that are built of others, whose sequences differ by expert or route.
    """
    configuration = bound.bind(c.model, c.parameters)
    if configuration is None or bound.spec is None or "experts" in c.parameters:
        return {}
    return dict(_kept(configuration, bound))


def _kept(configuration: Configuration, bound: BoundStudy) -> Iterator[tuple[str, Kept | None]]:
    from sftsearch.trainables.config import TransformerConfig
    from sftsearch.trainables.pooling_config import PoolingConfig

    config, spec = configuration.model_config, bound.spec
    assert spec is not None
    if not isinstance(config, TransformerConfig):
        return  # a model without tokens
    cuts = config.cuts(spec)
    if not isinstance(config, PoolingConfig):
        yield from ((m, (0, cut.patch, cut.num_tokens, cut.num_tokens)) for m, cut in cuts.items())
        return
    windows, longest = config.windows(spec), max(cut.patch for cut in cuts.values())
    for name, cut in cuts.items():
        yield name, _of(windows[name], cut.patch) if name in windows else None
    yield from ((JOINED, _of(own, longest)) for name, own in windows.items() if name not in cuts)


def _of(windows: Windows, patch: int) -> Kept:
    is_pooled = windows.count < windows.num_tokens
    return (windows.longest if is_pooled else 0, patch, windows.num_tokens, windows.count)

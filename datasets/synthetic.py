"""Generate three synthetic datasets of two modalities with a known best possible result.

**synthetic** is a classification. A sample has three fair, independent bits: the left modality
shows `l`, the right one `r`, and both show `c`. The class is the pair (l xor r, c), one of four.
The xor is synergy: no modality alone and no sum of modality votes predicts it. `c` is redundancy.

Every number is noise N(0, 1). Each token of the left modality adds +-p to feature 0 by the sign of
`l` and +-s to feature 1 by the sign of `c`; the right one does the same with `r` and `c`. With T
tokens the amplitudes are p = PRIVATE / sqrt(T) and s = SHARED / sqrt(T), so T does not matter:

- Given the bits, all numbers are independent, so the log-odds of a bit are a sum over the numbers
  that show it, each 2 times its amplitude times its value (Bayes' rule, Gaussian noise, equal
  priors). The prediction is wrong when noise exceeds the mean of the sum, which is
  T p / sqrt(T) = PRIVATE standard deviations: `l` and `r` are each predicted correctly with
  probability P = Phi(PRIVATE). For `c` both modalities add up to (2 SHARED^2) / sqrt(2 SHARED^2)
  standard deviations: C = Phi(sqrt(2) SHARED).
- Let a and b be the probabilities of l = 1 and r = 1. P(l xor r = 0) - 1/2 equals
  2 (a - 1/2) (b - 1/2), so the best prediction of the xor is the xor of the best predictions. It is
  correct when both are correct or both are wrong: X = P^2 + (1 - P)^2.
- Different, independent numbers show the xor and `c`, so the best class is the pair of the best
  predictions, and **the best accuracy is X C**.
- One modality alone has no information about the xor (the other bit is fair) and predicts `c`
  correctly with probability Phi(SHARED): **the best unimodal accuracy is Phi(SHARED) / 2**. Chance
  is 1/4.

**synthetic_tags**, multi-label, and **synthetic_rating**, a regression, have a right modality of
variable length: it is missing from one sample in ten and otherwise has 1 to 8 tokens with equal
probability. Every token has the same amplitude, so longer samples are more informative.

- A sample of `synthetic_tags` has three fair, independent tags. Every number is noise N(0, 1); a
  token of modality m adds +-a to feature k by the sign of tag k, a = TAG_AMPLITUDES[m][k]. As
  above, squared standard deviations add up: with n right tokens, tag k is predicted correctly with
  probability Phi(sqrt(6 left_k^2 + n right_k^2)). The best accuracy is the mean over tags and n.
  Tags are fair and errors are symmetric, so there are as many false negatives as false positives,
  and half of all predictions and labels are positive: micro and macro F1 equal the best accuracy.
- The label of a sample of `synthetic_rating` is u + v + RATING_NOISE e; u, v and e are N(0, 1).
  Every number is noise N(0, 1); each token adds RATING_AMPLITUDE u to feature 0 on the left, and
  the same with v on the right. Given n tokens, u is normal with variance
  r(n) = 1 / (1 + n RATING_AMPLITUDE^2) (Bayes' rule for normal distributions), and the label is
  normal with variance r(6) + r(n) + RATING_NOISE^2. The best prediction is its mean. The mean
  absolute value of a normal variable is sqrt(2 / pi) standard deviations, so **the best mean
  absolute error is the mean over n of sqrt(2 / pi (r(6) + r(n) + RATING_NOISE^2))**. The best
  prediction explains 2 - r(6) - mean r(n) of the label variance 2 + RATING_NOISE^2; this fraction
  is the square of its correlation with the label.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from sftsearch.datasets.spec import SPLITS, DatasetSpec, ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import numpy.typing as npt

    from sftsearch.datasets.samples import Split

GENERATOR_VERSION = 1
"""Increased whenever equal parameters generate different samples."""

SEED = 0
PRIVATE = 2.75
"""Mean over standard deviation of the evidence for a bit that one modality shows."""
SHARED = 1.75
"""Mean over standard deviation of each modality's evidence for the bit that both show."""
MODALITIES = {
    "left": ModalitySpec(num_tokens=6, num_features=3),
    "right": ModalitySpec(num_tokens=4, num_features=2),
}
NUM_SAMPLES = {"train": 2000, "validation": 500, "test": 1000}
CLASSES = ("same_off", "same_on", "different_off", "different_on")

VARIABLE_MODALITIES = {
    "left": ModalitySpec(num_tokens=6, num_features=3),
    "right": ModalitySpec(num_tokens=8, num_features=3, variable_length=True),
}
"""Modalities of `synthetic_tags` and `synthetic_rating`."""
MISSING = 0.1
"""Probability that the right modality is missing."""
TAGS = ("left", "right", "both")
TAG_AMPLITUDES = {"left": (0.9, 0.3, 0.4), "right": (0.0, 0.9, 0.5)}
RATING_AMPLITUDE = 1.5
RATING_NOISE = 0.5


def spec() -> DatasetSpec:
    """Return the spec of the classification dataset."""
    return DatasetSpec(
        name="synthetic",
        modalities=dict(MODALITIES),
        classes=CLASSES,
        num_samples=dict(NUM_SAMPLES),
        subjects=dict.fromkeys(SPLITS, ()),
        licence="Apache-2.0",
        attribution="Generated by sftsearch.",
        source="sftsearch.datasets.synthetic",
        description=(
            "Two short synthetic modalities that must be fused: one half of the class is an "
            "exclusive or across them. The best possible accuracy is known."
        ),
        fingerprint=_fingerprint(),
        best_accuracy=best_accuracy(),
    )


def load() -> dict[str, Split]:
    """Generate the samples; every split has a separate random stream."""
    return _load(generate)


def tags_spec() -> DatasetSpec:
    """Return the spec of the multi-label dataset."""
    parameters = {"tags": TAGS, "amplitudes": TAG_AMPLITUDES}
    return replace(
        spec(),
        name="synthetic_tags",
        task="multilabel",
        modalities=dict(VARIABLE_MODALITIES),
        classes=TAGS,
        description=(
            "Three synthetic tags, shown by two modalities; one of them varies in length and is "
            "missing from a tenth of the samples. The best possible accuracy and F1 are known."
        ),
        fingerprint=_variable_fingerprint("synthetic_tags", parameters),
        best_accuracy=fmean(best_tag_accuracies()),
    )


def load_tags() -> dict[str, Split]:
    """Generate the samples of the multi-label dataset."""
    return _load(generate_tags)


def rating_spec() -> DatasetSpec:
    """Return the spec of the regression dataset."""
    parameters = {"amplitude": RATING_AMPLITUDE, "noise": RATING_NOISE}
    return replace(
        spec(),
        name="synthetic_rating",
        task="regression",
        modalities=dict(VARIABLE_MODALITIES),
        classes=(),
        description=(
            "A synthetic number, shown by two modalities; one of them varies in length and is "
            f"missing from a tenth of the samples. The best possible MAE is {best_mae():.4f}, the "
            f"best Pearson correlation {best_pearson():.4f}."
        ),
        fingerprint=_variable_fingerprint("synthetic_rating", parameters),
        best_accuracy=None,
    )


def load_rating() -> dict[str, Split]:
    """Generate the samples of the regression dataset."""
    return _load(generate_rating)


def best_accuracy() -> float:
    """Return the accuracy of the Bayes-optimal classifier, as derived above."""
    private = _phi(PRIVATE)
    xor = private**2 + (1 - private) ** 2
    return xor * _phi(math.sqrt(2) * SHARED)


def best_tag_accuracies() -> tuple[float, ...]:
    """Return the accuracy of the best prediction of each tag, as derived above."""
    num_left = VARIABLE_MODALITIES["left"].num_tokens
    pairs = zip(TAG_AMPLITUDES["left"], TAG_AMPLITUDES["right"], strict=True)
    return tuple(
        sum(
            odds * _phi(math.sqrt(num_left * left**2 + length * right**2))
            for length, odds in length_odds().items()
        )
        for left, right in pairs
    )


def best_mae() -> float:
    """Return the mean absolute error of the best prediction of a rating, as derived above."""
    return sum(
        odds * math.sqrt(2 / math.pi * (_rating_variance(length) + RATING_NOISE**2))
        for length, odds in length_odds().items()
    )


def best_pearson() -> float:
    """Return the correlation of the best predictions with the ratings, as derived above."""
    variance = sum(odds * _rating_variance(length) for length, odds in length_odds().items())
    return math.sqrt((2 - variance) / (2 + RATING_NOISE**2))


def _rating_variance(length: int) -> float:
    """Return the variance of u + v given all left tokens and `length` right tokens."""
    counts = (VARIABLE_MODALITIES["left"].num_tokens, length)
    return sum(1 / (1 + count * RATING_AMPLITUDE**2) for count in counts)


def length_odds() -> dict[int, float]:
    """Return the probability of each length of the right modality."""
    longest = VARIABLE_MODALITIES["right"].num_tokens
    return {0: MISSING} | dict.fromkeys(range(1, longest + 1), (1 - MISSING) / longest)


def _phi(z: float) -> float:
    """Return the standard normal distribution function at `z`."""
    return (1 + math.erf(z / math.sqrt(2))) / 2


def _fingerprint() -> str:
    parameters = {
        "version": GENERATOR_VERSION,
        "seed": SEED,
        "private": PRIVATE,
        "shared": SHARED,
        "modalities": [
            [name, shape.num_tokens, shape.num_features] for name, shape in MODALITIES.items()
        ],
        "num_samples": [NUM_SAMPLES[split] for split in SPLITS],
    }
    return hashlib.sha256(f"synthetic {json.dumps(parameters)}".encode()).hexdigest()


def _variable_fingerprint(name: str, parameters: Mapping[str, object]) -> str:
    shared = {
        "version": GENERATOR_VERSION,
        "seed": SEED,
        "missing": MISSING,
        "modalities": {key: shape.hashed() for key, shape in VARIABLE_MODALITIES.items()},
        "num_samples": NUM_SAMPLES,
    }
    return hashlib.sha256(f"{name} {json.dumps({**shared, **parameters})}".encode()).hexdigest()


def _load(generate: Callable[[str, int, np.random.Generator], Split]) -> dict[str, Split]:
    import numpy as np

    seeds = np.random.SeedSequence(SEED).spawn(len(SPLITS))
    return {
        name: generate(name, NUM_SAMPLES[name], np.random.default_rng(seed))
        for name, seed in zip(SPLITS, seeds, strict=True)
    }


def generate(name: str, num_samples: int, random: np.random.Generator) -> Split:
    """Generate samples of `synthetic`."""
    import numpy as np

    from sftsearch.datasets.samples import Split

    bits = random.integers(0, 2, size=(3, num_samples))
    left, right, common = bits
    return Split(
        name=name,
        modalities={
            "left": _show(MODALITIES["left"], left, common, random),
            "right": _show(MODALITIES["right"], right, common, random),
        },
        labels=(2 * (left ^ right) + common).astype(np.int64),
        subjects=np.full(num_samples, -1, dtype=np.int64),
    )


def _show(
    shape: ModalitySpec,
    private: npt.NDArray[np.int64],
    common: npt.NDArray[np.int64],
    random: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Return noise (N, T, F) that shows the bits `private` and `common`, (N,) each."""
    x_NTF = random.standard_normal((len(private), shape.num_tokens, shape.num_features))
    x_NTF[:, :, 0] += (2 * private[:, None] - 1) * PRIVATE / math.sqrt(shape.num_tokens)
    x_NTF[:, :, 1] += (2 * common[:, None] - 1) * SHARED / math.sqrt(shape.num_tokens)
    return x_NTF.astype("float32")


def generate_tags(name: str, num_samples: int, random: np.random.Generator) -> Split:
    """Generate samples of `synthetic_tags`."""
    import numpy as np

    tags_NC = random.integers(0, 2, size=(num_samples, len(TAGS)))
    shown = {key: (2 * tags_NC - 1) * np.array(TAG_AMPLITUDES[key]) for key in VARIABLE_MODALITIES}
    return _show_variable(name, shown, tags_NC, random)


def generate_rating(name: str, num_samples: int, random: np.random.Generator) -> Split:
    """Generate samples of `synthetic_rating`."""
    import numpy as np

    u, v, noise = random.standard_normal((3, num_samples))
    nothing = np.zeros(num_samples)
    shown = {
        key: np.stack([RATING_AMPLITUDE * value, nothing, nothing], axis=1)
        for key, value in (("left", u), ("right", v))
    }
    return _show_variable(name, shown, u + v + RATING_NOISE * noise, random)


def _show_variable(
    name: str,
    shown: dict[str, npt.NDArray[np.float64]],
    labels: npt.NDArray[np.generic],
    random: np.random.Generator,
) -> Split:
    """Return samples whose valid tokens are noise plus the signal `shown`, (N, F) by modality."""
    import numpy as np

    from sftsearch.datasets.samples import Split

    longest = VARIABLE_MODALITIES["right"].num_tokens
    length_N = random.integers(1, longest + 1, size=len(labels))
    length_N[random.random(len(labels)) < MISSING] = 0
    modalities = {}
    for key, shape in VARIABLE_MODALITIES.items():
        x_NTF = random.standard_normal((len(labels), shape.num_tokens, shape.num_features))
        x_NTF += shown[key][:, None, :]
        modalities[key] = x_NTF.astype(np.float32)
    modalities["right"][np.arange(longest) >= length_N[:, None]] = 0.0
    return Split(
        name=name,
        modalities=modalities,
        labels=labels.astype(np.float32),
        subjects=np.full(len(labels), -1, dtype=np.int64),
        lengths={"right": length_N},
    )

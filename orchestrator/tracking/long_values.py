"""Store values that are too long for a tag of a run as its artifacts.

MLflow cuts longer values without a word, which makes the JSON of many subjects unreadable.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

if TYPE_CHECKING:
    from mlflow import MlflowClient

IN_ARTIFACT = "in the artifact "
"""Begin of the value of a tag whose text is in an artifact; the rest is the artifact's path."""
FOLDER = "sftsearch"
NOTE = "mlflow.note.content"


def split_long(tags: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Replace values that are too long for tags.

    Returns:
        tags of allowed length, and the texts of artifacts by path. A long note is shortened: it is
        there to be read.
    """
    short, artifacts = {}, {}
    for name, value in tags.items():
        if len(value) <= MAX_TAG_VAL_LENGTH:
            short[name] = value
        elif name == NOTE:
            short[name] = value[: MAX_TAG_VAL_LENGTH - 4] + " ..."
        else:
            path = f"{FOLDER}/{name}.txt"
            short[name], artifacts[path] = IN_ARTIFACT + path, value
    return short, artifacts


def shortened_param(value: str) -> str:
    """Return a parameter's text in the length that MLflow allows; the whole one is in a tag."""
    if len(value) <= MAX_PARAM_VAL_LENGTH:
        return value
    return value[: MAX_PARAM_VAL_LENGTH - 4] + " ..."


def full_tags(client: MlflowClient, run_id: str, tags: dict[str, str]) -> dict[str, str]:
    """Return the tags of a run, with the texts that are in artifacts.

    Raises:
        MlflowException: an artifact cannot be read.
    """
    full = dict(tags)
    for name, value in tags.items():
        if value.startswith(IN_ARTIFACT):
            with tempfile.TemporaryDirectory() as folder:
                file = client.download_artifacts(
                    run_id, value.removeprefix(IN_ARTIFACT), dst_path=folder
                )
                full[name] = Path(file).read_text(encoding="utf-8")
    return full

"""Check a tracking URI before a study starts."""

from __future__ import annotations

import re
from importlib import metadata

from sftsearch.datasets.errors import UserError, nearest

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""Of MLflow's own stores; other ones come from plug-ins of MLflow."""


def check_uri(uri: str | None) -> None:
    """Check that MLflow has a store for the scheme of a URI; None is the default store.

    Raises:
        UserError: it has none.
    """
    if uri is None or uri == "databricks":
        return
    scheme, separator, _ = uri.partition(":")
    base = scheme.partition("+")[0].lower()  # without the driver, as in postgresql+psycopg2
    if not separator or base == "file" or not re.fullmatch(r"[a-z][a-z0-9.-]*", base):
        raise UserError(
            f"--tracking-uri must be a server or a database, such as http://HOST:PORT or "
            f"sqlite:///PATH/mlflow.db, but got {uri!r:.200}: MLflow has no file stores."
        )
    plugged = {point.name for point in metadata.entry_points(group="mlflow.tracking_store")}
    known = sorted({*SCHEMES, *plugged} - {"file-plugin"})
    if base not in known:
        near = nearest(base, known)
        hint = f" Did you mean '{near}'?" if near else ""
        raise UserError(
            f"--tracking-uri has the unknown scheme '{base}'.{hint} Known: {', '.join(known)}."
        )

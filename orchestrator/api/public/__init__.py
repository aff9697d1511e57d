"""The Python API of sftsearch, imported as `sftsearch.api`.

Everything that this module exports is stable: it is described in `docs/api.md`, and changes only as
the changelog announces. All other modules of sftsearch may change with any version.

Reading a study needs neither Ray nor MLflow, and imports neither; loading a model imports torch.

Example:
    >>> from sftsearch.api import load_study
    >>> study = load_study("stride")
    >>> prediction = study.best(max_gflops=0.001).load().predict({"watch_acc": samples})
"""

from sftsearch.datasets.errors import UserError
from sftsearch.datasets.spec import ModalitySpec
from sftsearch.orchestrator.api.front import Front
from sftsearch.orchestrator.api.prediction import Prediction, Predictor
from sftsearch.orchestrator.api.records import Baseline, Configuration, Records, Trial
from sftsearch.orchestrator.api.running import Progress, run_study
from sftsearch.orchestrator.api.samples import Dataset, Samples, open_dataset, prepare_dataset
from sftsearch.orchestrator.api.study import Study, list_studies, load_study

__all__ = [
    "Baseline",
    "Configuration",
    "Dataset",
    "Front",
    "ModalitySpec",
    "Prediction",
    "Predictor",
    "Progress",
    "Records",
    "Samples",
    "Study",
    "Trial",
    "UserError",
    "list_studies",
    "load_study",
    "open_dataset",
    "prepare_dataset",
    "run_study",
]

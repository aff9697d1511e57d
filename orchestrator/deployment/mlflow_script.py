"""Run an ONNX export as an MLflow model; MLflow saves this file and executes it on loading."""

from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class ExportedModel(PythonModel):
    """The graphs of an export, run by its `predict.py`."""

    script: ModuleType
    _skip_type_hint_validation = True  # MLflow's type hints cannot name several arrays: see below

    def load_context(self, context: PythonModelContext) -> None:
        """Check the files of the export and open its graphs."""
        folder = Path(context.artifacts["model"])
        spec = util.spec_from_file_location("sftsearch_predict", folder / "predict.py")
        assert spec is not None, "it is a Python file"
        assert spec.loader is not None, "it is a Python file"
        self.script = util.module_from_spec(spec)
        spec.loader.exec_module(self.script)
        self.model = self.script.read_model(folder)
        self.run = self.script.open_graphs(folder)

    def predict(
        self,
        context: PythonModelContext,
        model_input: Any,
        params: dict[str, object] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the scores of samples, (B, C); `model_input` has arrays by name."""
        scores: npt.NDArray[np.float32] = self.script.predict(self.model, self.run, model_input)
        return scores

    del predict.__annotations__["model_input"]  # MLflow would warn of it


set_model(ExportedModel())

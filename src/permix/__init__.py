"""permix: language models that stay right under any persona, and in character when asked. See `permix.cli` for the commands.

The names of `__all__` are the Python API (docs/api.md). Each is imported when it is first used, so that `import permix` is cheap;
what is not among them may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from permix import metrics as metrics
    from permix.api import FidelityRun as FidelityRun
    from permix.api import StabilityRun as StabilityRun
    from permix.api import TrainRun as TrainRun
    from permix.api import compare as compare
    from permix.api import evaluate_fidelity as evaluate_fidelity
    from permix.api import evaluate_stability as evaluate_stability
    from permix.api import judge as judge
    from permix.api import load_personas as load_personas
    from permix.api import open_run as open_run
    from permix.api import study as study
    from permix.api import train as train
    from permix.api import write_report as write_report
    from permix.errors import ConfigError as ConfigError
    from permix.errors import DataError as DataError
    from permix.errors import IncompleteRunError as IncompleteRunError
    from permix.inference import load_model as load_model
    from permix.inference.base import Model as Model
    from permix.interop.trl import mix_personas as mix_personas
    from permix.interop.trl import verifiable_reward as verifiable_reward
    from permix.personas.pool import PersonaPool as PersonaPool
    from permix.tasks import LoadedTask as LoadedTask
    from permix.tasks import load_task as load_task
    from permix.tasks.base import Task as Task
    from permix.types import Completion as Completion
    from permix.types import Failure as Failure
    from permix.types import Persona as Persona
    from permix.types import Question as Question
    from permix.types import Request as Request
    from permix.types import Sampling as Sampling
    from permix.types import Verdict as Verdict

_MODULES = {
    "Completion": "permix.types",
    "ConfigError": "permix.errors",
    "DataError": "permix.errors",
    "Failure": "permix.types",
    "FidelityRun": "permix.api",
    "IncompleteRunError": "permix.errors",
    "LoadedTask": "permix.tasks",
    "Model": "permix.inference.base",
    "Persona": "permix.types",
    "PersonaPool": "permix.personas.pool",
    "Question": "permix.types",
    "Request": "permix.types",
    "Sampling": "permix.types",
    "StabilityRun": "permix.api",
    "Task": "permix.tasks.base",
    "TrainRun": "permix.api",
    "Verdict": "permix.types",
    "compare": "permix.api",
    "evaluate_fidelity": "permix.api",
    "evaluate_stability": "permix.api",
    "judge": "permix.api",
    "load_model": "permix.inference",
    "load_personas": "permix.api",
    "load_task": "permix.tasks",
    "mix_personas": "permix.interop.trl",
    "open_run": "permix.api",
    "study": "permix.api",
    "train": "permix.api",
    "verifiable_reward": "permix.interop.trl",
    "write_report": "permix.api",
}
"""Where each name is defined. `permix.report` is the package of that name, so the function is `write_report`."""

__all__ = [
    "Completion",
    "ConfigError",
    "DataError",
    "Failure",
    "FidelityRun",
    "IncompleteRunError",
    "LoadedTask",
    "Model",
    "Persona",
    "PersonaPool",
    "Question",
    "Request",
    "Sampling",
    "StabilityRun",
    "Task",
    "TrainRun",
    "Verdict",
    "__version__",
    "compare",
    "evaluate_fidelity",
    "evaluate_stability",
    "judge",
    "load_model",
    "load_personas",
    "load_task",
    "metrics",
    "mix_personas",
    "open_run",
    "study",
    "train",
    "verifiable_reward",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("permix.metrics")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

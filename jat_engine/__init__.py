"""jat_engine: run a JAT agent. Importing it makes published checkpoints load with transformers' auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from .config import JatConfig
from .errors import CheckpointError, InputError, SessionError
from .modeling import JatModel, JatOutput
from .processing import JatProcessor
from .session import ModelSession

__version__ = "0.1.0"

AutoConfig.register("jat", JatConfig, exist_ok=True)
AutoModelForCausalLM.register(JatConfig, JatModel, exist_ok=True)
AutoProcessor.register(JatConfig, JatProcessor, exist_ok=True)

__all__ = [
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoProcessor",
    "CheckpointError",
    "InputError",
    "JatConfig",
    "JatModel",
    "JatOutput",
    "JatProcessor",
    "ModelSession",
    "SessionError",
    "__version__",
]

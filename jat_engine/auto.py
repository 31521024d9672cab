"""transformers' auto classes, with JAT's model, processor and configuration registered."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from .config import JatConfig
from .modeling import JatModel
from .processing import JatProcessor

AutoConfig.register("jat", JatConfig, exist_ok=True)
AutoModelForCausalLM.register(JatConfig, JatModel, exist_ok=True)
AutoProcessor.register(JatConfig, JatProcessor, exist_ok=True)

__all__ = ["AutoConfig", "AutoModelForCausalLM", "AutoProcessor"]

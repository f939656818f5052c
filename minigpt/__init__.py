"A book that is also a library: build, train, run and understand a GPT."
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:      # what editors and type checkers see; a test keeps it equal to _HOME
    from .cache import KVCache as KVCache
    from .checkpoint import load_model as load_model
    from .checkpoint import save_model as save_model
    from .config import ModelConfig as ModelConfig
    from .data import Batches as Batches
    from .inference import complete as complete
    from .inference import generate as generate
    from .inference import load as load
    from .inference import stream as stream
    from .model import GPT as GPT
    from .recipe import Recipe as Recipe
    from .sampling import temperature as temperature
    from .sampling import top_k as top_k
    from .sampling import top_p as top_p
    from .tokenizer import Tokenizer as Tokenizer
    from .training import train as train
    from .weights import from_huggingface as from_huggingface
    from .weights import to_huggingface as to_huggingface

_HOME = {"Batches": "data", "GPT": "model", "KVCache": "cache", "ModelConfig": "config",
         "Recipe": "recipe", "Tokenizer": "tokenizer", "complete": "inference",
         "from_huggingface": "weights", "generate": "inference", "load": "inference",
         "load_model": "checkpoint", "save_model": "checkpoint", "stream": "inference",
         "temperature": "sampling", "to_huggingface": "weights", "top_k": "sampling",
         "top_p": "sampling", "train": "training"}
_ELSEWHERE = {"AutoModelForCausalLM": "load", "AutoTokenizer": "load", "GPTConfig": "ModelConfig",
              "from_pretrained": "load", "pipeline": "generate", "stream_generate": "stream",
              "batch_generate": "inference.complete_batch"}
__all__ = list(_HOME)


if not TYPE_CHECKING:       # to a type checker a name that is missing should be missing
    def __getattr__(name):      # PyTorch is imported when something is used, not before
        if name not in _HOME:
            hint = f"; ours is minigpt.{_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(f"module 'minigpt' has no attribute {name!r}{hint}")
        from importlib import import_module
        return getattr(import_module(f"minigpt.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOME])

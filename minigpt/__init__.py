"A book that is also a library: build, train, run and understand a GPT."
__version__ = "0.1.0"

_HOME = {"GPT": "model", "ModelConfig": "config", "Tokenizer": "tokenizer", "complete": "inference",
         "from_huggingface": "weights", "generate": "inference", "load_model": "checkpoint",
         "save_model": "checkpoint", "to_huggingface": "weights"}
__all__ = list(_HOME)


def __getattr__(name):      # PyTorch is imported when something is used, not before
    if name not in _HOME:
        raise AttributeError(f"module 'minigpt' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"minigpt.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOME])

"""Fine-tuning language models in their last mile: reference outputs, no human preferences."""

__version__ = "0.1.0"

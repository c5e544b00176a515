"""softmux: one frozen language model serving thousands of soft prompts in one forward pass."""

__version__ = "0.1.0"

"""permix: language models that stay right under any persona, and in character when asked. See `permix.cli` for the verbs."""

__version__ = "0.1.0"

"""The Pharaoh daemon."""

__version__ = "0.1.0"

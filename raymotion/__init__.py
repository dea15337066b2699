"""raymotion labels image collections with emotions, on Ray."""

__version__ = "0.1.0"

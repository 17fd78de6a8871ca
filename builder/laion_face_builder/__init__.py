"""The packages behind laion_face.py. Imports go one way: upstream -> index -> images -> examples; `cli` is on top."""

__version__ = "0.1.0"

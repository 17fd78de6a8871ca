"""The rooms behind laion_face.py. Imports point one way: upstream -> index -> images -> examples; `cli` is a top."""

__version__ = "0.1.0"

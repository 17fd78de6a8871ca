"""The packages behind laion_face.py. Imports go one way, from sources up to the command line (`.importlinter`)."""

__version__ = "0.1.0"

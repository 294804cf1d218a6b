"""The version of the package, where everything that names it may read it."""

__version__ = "0.1.0"

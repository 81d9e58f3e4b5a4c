"""The version of the package, which runs record."""

__version__ = "0.2.0"

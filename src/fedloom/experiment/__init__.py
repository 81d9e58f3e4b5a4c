"""Experiments: their keys, the methods that they compare, and grids of experiments."""

from fedloom.experiment.experiment import Experiment
from fedloom.experiment.recipes import load_experiment, recipes

__all__ = ["Experiment", "load_experiment", "recipes"]

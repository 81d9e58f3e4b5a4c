"""What a run is asked to do: the keys of an experiment, the methods that it compares, and grids of experiments."""

from fedloom.experiment.experiment import Experiment
from fedloom.experiment.recipes import load_experiment, recipes

__all__ = ["Experiment", "load_experiment", "recipes"]

"""Training a model as a recipe says, in one loop that is read from top to bottom, with a record of what it spent."""

from scrimp.train.config import TrainConfig as TrainConfig
from scrimp.train.job import Seams as Seams
from scrimp.train.load import TrainedModel as TrainedModel
from scrimp.train.load import load_run as load_run
from scrimp.train.recipes import RECIPES as RECIPES
from scrimp.train.recipes import find_recipe as find_recipe
from scrimp.train.run import Run as Run
from scrimp.train.run import run as run

__all__ = ["RECIPES", "Run", "Seams", "TrainConfig", "TrainedModel", "find_recipe", "load_run", "run"]

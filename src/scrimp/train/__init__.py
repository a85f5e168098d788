"""The main job: recipes, data, models and the training loop."""

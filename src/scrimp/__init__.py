"""scrimp: cheaper training, in samples, steps, bits and checkpoint bytes."""

__version__ = "0.1.0.dev0"

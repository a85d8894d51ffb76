"""What every trainer needs around its algorithm: the run directory, checkpoints, metrics, the console, evaluation."""

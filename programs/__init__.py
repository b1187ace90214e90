"""The program as data (predictors, candidate, artifact) and the run time that executes it."""

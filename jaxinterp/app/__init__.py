"""The application: commands, stages of a run, the registry of named runs, published results."""

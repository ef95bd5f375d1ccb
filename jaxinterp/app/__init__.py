"""The application: commands, stages of a run, the registry of named runs, published results."""

import os

if os.environ.get("NO_COLOR"):
    os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")  # help, too; tyro reads it when it is imported

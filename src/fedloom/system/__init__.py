"""Files, processes, signals and error messages. Nothing here depends on federated learning."""

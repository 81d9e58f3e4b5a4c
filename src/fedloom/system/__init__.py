"""The machine below: files, processes, signals, messages about failures. Nothing here knows of federated learning."""

"""Read a recipe or an experiment's file: documents with places, the schema of each section, and all mistakes at once."""

"""Read recipes and experiments: documents with places, the schema of each section, and all mistakes at once."""

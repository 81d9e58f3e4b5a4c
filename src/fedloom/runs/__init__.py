"""Put everything to work: one run from data to report, and many runs as a sweep."""

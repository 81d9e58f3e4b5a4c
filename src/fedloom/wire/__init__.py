"""The messages between a server and its sites, as values and as bytes."""

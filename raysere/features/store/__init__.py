"""The feature store: contents, shards, failed utterances."""

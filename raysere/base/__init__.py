"""What all else stands on: errors, files, registries, progress, the local Ray."""

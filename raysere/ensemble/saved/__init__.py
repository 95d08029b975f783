"""An ensemble on disk: written, read, checked, used."""

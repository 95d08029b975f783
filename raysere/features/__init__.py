"""Features: what is cached, and the views that trials read."""

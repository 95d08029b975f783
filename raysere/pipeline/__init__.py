"""From an experiment file to a report: checks, stages, costs."""

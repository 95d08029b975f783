"""The ensemble: fitted on members' predictions, scored, saved."""

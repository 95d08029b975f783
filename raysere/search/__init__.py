"""The search: studies, lanes, trials, the ledger of finished trials."""

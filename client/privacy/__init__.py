"""Privacy by patient at a site: rules, the private step, the round, the ledger."""

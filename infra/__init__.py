"""Where it runs: settings, object store, tracking, compute and the local stack."""

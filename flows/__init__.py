"""When things happen: Prefect flows and the `squall` command."""

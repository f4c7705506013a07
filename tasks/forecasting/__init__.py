"""From what was known at a moment to a forecast: the context with its verdict, and the ladder of forecasters."""

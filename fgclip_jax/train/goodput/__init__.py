"""Where a run's hours went: recorded while it trains, added up over all its starts."""

"""Compare graphs with what the original model answered: metrics, policies, hooks, reports."""

"""The strategies: what to try next."""

"""Sources of events: each is read, checked, staged and appended to the lake."""

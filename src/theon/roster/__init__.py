"""Campuses, courses and people's ids: who and what the events speak of."""

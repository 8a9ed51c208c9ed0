"""Reusable procedures over several trainings."""

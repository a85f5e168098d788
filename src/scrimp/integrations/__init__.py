"""Adapters to the frameworks of others; each module imports its own framework only."""

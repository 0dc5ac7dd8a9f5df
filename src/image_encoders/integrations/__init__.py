"""Thin adapters to other people's frameworks."""

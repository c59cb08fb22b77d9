"""Typed rewriting helpers shared by passes."""

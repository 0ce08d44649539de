"""Hostile tries, thousands of them, each with a right answer: ``python -m tests.fuzz`` runs them and counts by kind.

Every module of this folder is a kind. Its ``tries(place, draw)`` yields tries without end, or until there are no more: each
is a few words that say how to do it again, and a function that returns what came of it, or raises ``AssertionError``.
"""

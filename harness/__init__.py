"""Profiles stages, reads their traces, compares them and draws them."""

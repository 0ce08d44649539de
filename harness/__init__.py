"""Profiles stages, reads their traces, compares them and draws them."""

import common as common  # from here on Ctrl-C ends in one line

"""Deciding: pure values and functions. No clock, no dice, no I/O; everything else imports from here."""

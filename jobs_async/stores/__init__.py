"""Persisting: one module per database, each a Store, none of them deciding anything."""

"""Running: the only place with tasks. `supervisor` is the public face, `engine` what lives between start and stop."""

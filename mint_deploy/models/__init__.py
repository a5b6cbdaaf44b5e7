"""The zoo and how a MODEL on the command line becomes a network."""

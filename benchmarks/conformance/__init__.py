"""The conformance suite: what the engine and a peer do on real architectures (see ``../conformance.py``)."""

"""How much information a unit passes on, given the others: one estimator a file.

An estimator used by ``criterion="mint"`` has ``eliminate(readers, **settings) -> (loss, order)``.
"""

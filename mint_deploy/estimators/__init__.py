"""How much information a unit passes on, given the others: one estimator a file.

An estimator used by ``criterion="mint"`` has

    NEEDS: what ``sample`` has to gather: some of "moments", "sensitivity", "pooled", "gradients"
    rank(graph, moments, *, seed, progress, **settings) -> Importance
    dependency(outputs, inputs, *, out_groups, in_groups, condition, seed, ...) -> [G_out, G_in]
"""
